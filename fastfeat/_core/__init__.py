"""The native core: key --index--> timeline --as-of--> row --columns--> cell --codec--> bytes."""
