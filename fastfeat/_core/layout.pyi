LAYOUT_VERSION: int
IS_DEBUG: bool

def check_sizes() -> dict[str, int]: ...
