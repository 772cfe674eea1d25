"""YAML that may come from anybody, as plain values: no tags, no aliases, nothing very large."""

from typing import Any

import yaml

LARGEST = 1 << 20  # characters


class _Plain(yaml.SafeLoader):
    """Refuses aliases: nested, a page of them stands for more values than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node, unless it is another name for an earlier one."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are refused")
        return super().compose_node(parent, index)


def parsed(text: str) -> Any:
    """The values of a text; whatever looks like code in it is a word or an error.

    Raises: ValueError where it is too large, malformed, or holds tags or aliases.
    """
    if len(text) > LARGEST:
        raise ValueError(f"it has {len(text)} characters, more than {LARGEST}")
    try:
        return yaml.load(text, _Plain)  # a safe loader
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is no plain YAML: {error or 'it is nested too deeply'}") from error
