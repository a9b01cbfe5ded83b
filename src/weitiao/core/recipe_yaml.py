"""YAML as a recipe is written in it: nothing is read as something else, and nothing is lost.

YAML 1.1, which PyYAML speaks, reads `no` as false, 010 as 8, 1:30 as 90 and 2024-05-03 as a date. Here they are text, as in
YAML 1.2, and a field that wants a number reads 010 as 10; 1e-3 is a number. Keys are text as written. A key that is written
twice is refused with both lines, because YAML would drop the first one without a word.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.core.recipe_errors import Key

TAG = "tag:yaml.org,2002:"
MERGE = f"{TAG}merge"  # the key <<
MAX_VALUES = 100_000  # in one file; more can only come from aliases of aliases
FLOAT = re.compile(
    r"""[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$
    |[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
SCALARS: dict[str, tuple[re.Pattern[str], list[str]]] = {  # tag -> what it looks like, its first characters
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "null": (re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "int": (re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")),
    "float": (FLOAT, list("-+.0123456789")),
    "merge": (re.compile(r"<<$"), ["<"]),
}
HINTS = {  # what people type without noticing
    "\t": Message(" Indent with spaces: this line has a tab."),
    "：": Message(" Write an ASCII colon and a space: this line has a full-width colon (：)."),
    "\u00a0": Message(" Write plain spaces: this line has a no-break space."),
}


LIBYAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(yaml.SafeLoader):
    """PyYAML's own parser: slower than libyaml, but its errors are clearer."""

    yaml_implicit_resolvers: Any = {}


class _FastLoader(LIBYAML):
    yaml_implicit_resolvers: Any = {}


class _Dumper(yaml.SafeDumper):
    """Quotes whatever a reader of YAML 1.1 or of recipes would not read as text."""


for _tag, (_pattern, _first) in SCALARS.items():
    for _class in (_Loader, _FastLoader):
        _class.add_implicit_resolver(f"{TAG}{_tag}", _pattern, _first)
_Dumper.add_implicit_resolver(f"{TAG}float", FLOAT, list("-+.0123456789"))


def dump_yaml(plain: dict[str, Any]) -> str:
    """Plain values as a recipe file; `read_yaml` reads them back."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_file(path: Path) -> str:
    """The text of a recipe file: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        RecipeError: it is in another encoding.
    """
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError("{path}, line {line}: not UTF-8. Save the file in UTF-8.", path=path, line=line) from None


def read_yaml(text: str, name: str | Path | Message) -> tuple[Any, dict[Key, int]]:
    """A YAML text's values, and the line of each key, counted from 1.

    Args:
        name: of the file or the override, for messages.

    Raises:
        RecipeError: it is not YAML, has a key twice, or a tag or a reference that recipes do not take.
    """
    try:
        document = _Document(name)
        node = _compose(text)
        return (None if node is None else document.value(node, ())), document.lines
    except yaml.reader.ReaderError as error:
        code, line = f"U+{ord(text[error.position]):04X}", text[: error.position].count("\n") + 1
        raise RecipeError(
            "{path}, line {line}: the character {code} is not allowed in YAML.", path=name, line=line, code=code
        ) from None
    except yaml.YAMLError as error:
        problem, mark = getattr(error, "problem", None) or str(error), getattr(error, "problem_mark", None)
        if problem.startswith("but found another document"):
            problem = "a file holds one recipe, without --- lines between parts"
        if mark is None:
            raise RecipeError("{path}: not readable as YAML: {problem}", path=name, problem=problem) from None
        nearby = "".join(text.splitlines()[max(0, mark.line - 1) : mark.line + 1])
        hint = next((message for sign, message in HINTS.items() if sign in nearby), Message(""))
        raise RecipeError(
            "{path}, line {line}: not readable as YAML: {problem}.{hint}",
            path=name,
            line=mark.line + 1,
            problem=problem,
            hint=hint,
        ) from None
    except RecursionError:
        raise RecipeError("{path}: its values are nested too deeply.", path=name) from None


def _compose(text: str) -> yaml.Node | None:
    """The syntax tree, by libyaml, which is ten times as fast; errors are those of the Python parser, which are clearer."""
    try:
        return yaml.compose(text, Loader=_FastLoader)
    except yaml.YAMLError:
        json_like = text.lstrip().startswith("{")  # JSON indents with tabs, too, and has none inside its texts
        return yaml.compose(text.replace("\t", " ") if json_like else text, Loader=_Loader)


class _Document:
    """A syntax tree on its way to plain values."""

    def __init__(self, name: str | Path | Message) -> None:
        self.name, self.lines, self.num_values = name, dict[Key, int](), 0
        self._open: list[int] = []  # ids of the nodes around the current one
        self._scalars = yaml.constructor.SafeConstructor()

    def value(self, node: yaml.Node, key: Key) -> Any:
        """The plain value of a node; notes the lines of the keys in it."""
        self.num_values += 1
        if id(node) in self._open:
            raise self._refusal(node, Message("{key} refers to itself", key=_dotted(key)))
        if self.num_values > MAX_VALUES:
            raise self._refusal(node, Message("the file has more than {n:,} values", n=MAX_VALUES))
        self._open.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                self._check_tag(node, "map")
                return self._mapping(node, key)
            if isinstance(node, yaml.SequenceNode):
                self._check_tag(node, "seq")
                return self._list(node, key)
            return self._scalar(node)
        finally:
            self._open.pop()

    def _list(self, node: yaml.SequenceNode, key: Key) -> list[Any]:
        values = []
        for i, item in enumerate(node.value):
            self.lines[(*key, i)] = _line(item)
            values.append(self.value(item, (*key, i)))
        return values

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        """Keys are text; what << refers to comes first, and the mapping's own keys replace it."""
        values, written = dict[str, Any](), dict[str, int]()
        for name_node, _ in node.value:
            name = self._name(name_node)
            if first := written.get(name):
                message = Message(
                    "{key} is written twice, in lines {first} and {second}: one of them would be lost. Write it once",
                    key=_dotted((*key, name)),
                    first=first,
                    second=_line(name_node),
                )
                raise self._refusal(name_node, message)
            written[name] = _line(name_node)
        for name_node, value_node in sorted(node.value, key=lambda pair: pair[0].tag != MERGE):
            if name_node.tag != MERGE:
                inner = (*key, self._name(name_node))
                self.lines[inner] = _line(name_node)
                values[inner[-1]] = self.value(value_node, inner)
                continue
            for source in reversed(value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]):
                merged = self.value(source, key)
                if not isinstance(merged, dict):
                    raise self._refusal(name_node, Message("<< takes a mapping, or a list of mappings"))
                values |= merged
        return values

    def _name(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._refusal(node, Message("a key is text; this one is a list or a mapping"))
        return self._text(node)

    def _scalar(self, node: yaml.Node) -> Any:
        self._check_tag(node, "str", "bool", "null", "int", "float", "merge")
        if node.tag.removeprefix(TAG) in ("str", "merge"):
            return self._text(node)
        try:
            return self._scalars.construct_object(node)
        except (ValueError, KeyError):  # !!int x
            tag = node.tag.removeprefix(TAG)
            raise self._refusal(node, Message("{value!r} is not of type {tag}", value=node.value, tag=tag)) from None

    def _text(self, node: yaml.Node) -> str:
        """The text; JSON writes characters beyond U+FFFF as two escapes."""
        try:
            return node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            message = Message("the text has an unpaired surrogate, which is not a character")
            raise self._refusal(node, message) from None

    def _check_tag(self, node: yaml.Node, *names: str) -> None:
        if node.tag not in {f"{TAG}{name}" for name in names}:
            tag = f"!!{node.tag.removeprefix(TAG)}" if node.tag.startswith(TAG) else node.tag
            raise self._refusal(node, Message("recipes have no tags; this value has {tag}", tag=tag))

    def _refusal(self, node: yaml.Node, problem: Message) -> RecipeError:
        return RecipeError("{path}, line {line}: {problem}.", path=self.name, line=_line(node), problem=problem)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _dotted(key: Key) -> str:
    return ".".join(str(x) for x in key)
