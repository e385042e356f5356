"""The server program: an asyncio front for a fastfeat Store."""
