"""The client: one sans-IO session, a blocking and an asyncio driver."""
