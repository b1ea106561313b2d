"""YAML of bounded size: what a parser of YAML would follow for ever, or too deep, is refused first.

Brackets within brackets end a recursive reader. An alias (``*name``) stands for everything that its
anchor (``&name``) holds, so ten lines of aliases of aliases stand for billions of values, and an
alias inside of its own anchor for a value without end. The events of a parser show all of it
without building anything: they are counted, aliases with all that they stand for.
"""

import yaml

DEEPEST = 64
"""Collections within collections."""
MOST_VALUES = 100_000
"""Far more than any configuration holds."""


def require_bounded_yaml(text: str) -> None:
    """Check a text before it is parsed.

    Raises:
        yaml.YAMLError: if the text is no YAML.
        ValueError: if it is nested too deep or stands for too much.
    """
    open_collections: list[tuple[str | None, int]] = []  # anchors, and values counted before them
    sizes: dict[str, int] = {}
    count = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            if len(open_collections) == DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
            open_collections.append((event.anchor, count))
            if event.anchor is not None:
                sizes.pop(event.anchor, None)  # while it is open, an alias of it has no end
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_collections.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_collections):
                raise ValueError(f"{event.anchor!r} holds itself, by an alias")
            count += sizes.get(event.anchor, 1)
        if count > MOST_VALUES:
            raise ValueError(f"it stands for more than {MOST_VALUES} values")
