"""The tests: an oracle (`model`), what it is fed with (`strategies`), and the facts they show."""
