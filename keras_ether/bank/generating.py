"""Generation in which each prompt has an adapter of its own."""


class Generator:
    def __init__(self, model):
        raise NotImplementedError
