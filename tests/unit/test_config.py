"""The configuration: documented whole, checked whole, and where each value came from."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ctnode import config as configuration
from ctnode.config import RELOADABLE, Config, diff, document, explain, from_words, load, reloaded, require_root
from ctnode.config.models import KEYS, LISTS, Peer, Target
from ctnode.words import ConfigError, Unavailable

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def from_text(place: Path, text: str, **environment: str) -> configuration.Loaded:
    file = place / "some.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, environment=environment)


def fault(place: Path, text: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as wrong:
        from_text(place, text, **environment)
    assert wrong.value.exit_code == 78
    return wrong.value.message


def test_the_file_in_the_repository_is_the_document() -> None:
    assert (REPOSITORY / "config.toml").read_text(encoding="utf-8") == document()


def test_the_document_loads_and_changes_nothing(tmp_path: Path) -> None:
    written = from_text(tmp_path, document()).config
    default = load(environment={}).config
    assert diff(written, default) == ()


def test_what_is_commented_out_in_the_document_would_load(tmp_path: Path) -> None:
    text = re.sub(
        r"^# (\[\[|(?:name|ae_title|host|port|quiet_s|send|to|project|key_file|url) = )",
        r"\1",
        document(),
        flags=re.MULTILINE,
    )
    loaded = from_text(tmp_path, text).config
    assert [peer.name for peer in loaded.peers] == ["ct1"]
    assert [target.name for target in loaded.targets] == ["pacs"]


def test_every_key_has_a_meaning_in_one_line() -> None:
    for key, field in KEYS.items():
        if "." in key:
            assert field.description, key
            assert "\n" not in field.description
            assert f"{key.rpartition('.')[2]} = " in document()


def test_every_key_but_those_of_lists_has_a_default() -> None:
    assert all(not field.is_required() for key, field in KEYS.items() if key.split(".")[0] not in LISTS)
    Config()


def test_reloadable_keys_exist() -> None:
    assert set(KEYS) >= RELOADABLE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[node]\nprot = 104", ("node.prot", "no such key", "node.port")),
        ("[nodes]\nport = 104", ("nodes", "no such key", "node")),
        ("port = 104", ("port", "node.port")),
        ("[complete]\nquiet_s = 3", ("complete", "no such key")),
        ("[pipeline]\nspacing = 1.0", ("pipeline.spacing", "pipeline.spacing_mm")),
        ('[[peers]]\nname = "a"\nae_title = "A"\nhost = "h"\nquite_s = 1', ("peers.0.quite_s", "peers.quiet_s")),
        ('[[targets]]\nname = "a"\nae_title = "A"\nport = 4', ("targets.host", "a needs it")),
    ],
)
def test_an_unknown_or_missing_key_is_named_with_the_nearest(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    message = fault(tmp_path, text)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("node.port", '"104"'), ("node.port", "104.0"), ("node.port", "104.5"), ("node.port", "true"),
        ("node.port", "-1"), ("node.port", "65536"), ("node.port", "[104]"), ("node.ae_title", "104"),
        ("node.ae_title", '""'), ("node.ae_title", '"   "'), ("node.ae_title", '"SEVENTEENLETTERSX"'),
        ("node.ae_title", '"BACK\\\\SLASH"'), ("node.ae_title", '"Ä"'), ("node.accept_unknown", '"yes"'),
        ("node.accept_unknown", "1"), ("node.called_ae_titles", '"ONE"'), ("node.called_ae_titles", "[1]"),
        ("node.drain_s", '"30"'), ("node.drain_s", "true"), ("node.drain_s", "-1"), ("node.drain_s", "nan"),
        ("storage.root", "7"), ("storage.root", "false"), ("completion.quiet_s", "0"), ("completion.quiet_s", "inf"),
        ("completion.called_ae_quiet_s", "{ FAST = true }"), ("completion.called_ae_quiet_s", '{ FAST = "3" }'),
        ("worker.processes", "1.0"), ("worker.processes", "0"), ("log.level", '"loud"'), ("log.level", "7"),
        ("log.format", '"xml"'), ("inbox.path", "1"), ("peers", "7"), ("targets", '"pacs"'), ("node", "7"),
    ],
)  # fmt: skip
def test_a_wrong_type_or_value_is_named_with_the_meaning_of_its_key(tmp_path: Path, key: str, value: str) -> None:
    section, _, name = key.partition(".")
    message = fault(tmp_path, f"[{section}]\n{name} = {value}" if name else f"{section} = {value}")
    assert message.startswith(section)
    if name:
        assert key in message
        assert KEYS[key].description in message


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    message = fault(tmp_path, "[node]\nport = true\nprot = 1\n[log]\nlevel = 'loud'")
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize("text", ["[node", "\ufffe", "a = 1 = 2"])
def test_what_is_not_toml_is_said_with_its_file(tmp_path: Path, text: str) -> None:
    assert "some.toml" in fault(tmp_path, text)


def test_a_file_that_is_not_text_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "some.toml").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ConfigError):
        load(tmp_path / "some.toml", environment={})


def test_names_are_unique(tmp_path: Path) -> None:
    one = '[[peers]]\nname = "a"\nae_title = "A"\nhost = "h"\n'
    assert "stands twice" in fault(tmp_path, one + one)


RULE = '[[completion_rules]]\nname = "{}"\n{}\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RULE.format("a", 'peer = "ct9"'), ("completion_rules.peer", "ct9", "not in [[peers]]")),
        (RULE.format("a", "") + RULE.format("b", 'modality = "CT"'), ("b is never reached", "a before it")),
        (RULE.format("a", 'modality = "CT"') + RULE.format("a", 'modality = "PT"'), ("a stands twice",)),
        (RULE.format("a", 'suspect = "discard"'), ("completion_rules.0.suspect", "process or hold")),
        (RULE.format("a", 'modality = "ct"'), ("completion_rules.0.modality",)),
        (RULE.format("a", "quiet_s = 0"), ("completion_rules.0.quiet_s",)),
        (RULE.format("a", "quiet = 3"), ("no such key", "quiet_s")),
    ],
)
def test_a_rule_of_completion_that_makes_no_sense(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    said = fault(tmp_path, text)
    assert [word for word in words if word not in said] == []


# -------------------------------------------------------------------------------------------- environment


def test_a_variable_for_each_kind_of_value(tmp_path: Path) -> None:
    config = from_text(
        tmp_path, "",
        CTNODE_NODE__PORT="104", CTNODE_NODE__AE_TITLE="123", CTNODE_NODE__ACCEPT_UNKNOWN="true",
        CTNODE_NODE__CALLED_AE_TITLES='["A", "B"]', CTNODE_NODE__DRAIN_S="2.5", CTNODE_LOG__LEVEL="debug",
        CTNODE_STORAGE__ROOT="data", CTNODE_COMPLETION__CALLED_AE_QUIET_S='{"FAST": 2}',
        CTNODE_TARGETS='[{"name": "p", "ae_title": "P", "host": "h", "port": 104}]', HOME="x", PATH="y",
    ).config  # fmt: skip
    assert (config.node.port, config.node.ae_title, config.node.accept_unknown) == (104, "123", True)
    assert (config.node.called_ae_titles, config.node.drain_s, config.log.level) == (("A", "B"), 2.5, "debug")
    assert config.root == tmp_path / "data"
    assert config.completion.called_ae_quiet_s == {"FAST": 2.0}
    assert [target.name for target in config.targets] == ["p"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CTNODE_NODE__PROT", "1"), ("CTNODE_PORT", "1"), ("CTNODE_NODE", "1"), ("CTNODE_NODE__", "1"),
        ("CTNODE_", "1"), ("CTNODE_NODE__PORT", "many"), ("CTNODE_NODE__PORT", '"104"'), ("CTNODE_NODE__PORT", ""),
        ("CTNODE_NODE__ACCEPT_UNKNOWN", "yes"), ("CTNODE_NODE__CALLED_AE_TITLES", "A,B"),
        ("CTNODE_PEERS__NAME", "a"), ("CTNODE_TESTING", "1"),
    ],
)  # fmt: skip
def test_any_other_variable_is_an_error(tmp_path: Path, variable: str, value: str) -> None:
    assert fault(tmp_path, "", **{variable: value})


def test_variables_of_tests_and_the_files_own_are_passed_over(tmp_path: Path) -> None:
    from_text(tmp_path, "", CTNODE_TEST_CRASH="x", CTNODE_TEST_ANYTHING="y")
    (tmp_path / "named.toml").write_text("[node]\nport = 1\n")
    assert load(environment={"CTNODE_CONFIG": str(tmp_path / "named.toml")}).config.node.port == 1


# ------------------------------------------------------------------------------------ files and precedence


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("pipeline.spacing_mm=keep", "spacing_mm", "keep"), ("pipeline.spacing_mm=0.8", "spacing_mm", 0.8),
        ("pipeline.spacing_mm=[1, 1, 2]", "spacing_mm", (1.0, 1.0, 2.0)),
        ("pipeline.size=[256,256,128]", "size", (256, 256, 128)),
        ("pipeline.volumes=all", "volumes", "all"),
    ],
)  # fmt: skip
def test_words_of_the_command_line(word: str, key: str, value: object) -> None:
    environment = {"CTNODE_PIPELINE__SPACING_MM": "keep", "CTNODE_PIPELINE__SIZE": "[1, 2, 3]"}
    config = load(environment=environment, overrides=from_words([word])).config
    assert getattr(config.pipeline, key) == value
    assert load(environment=environment).config.pipeline.spacing_mm == "keep"


@pytest.mark.parametrize(
    ("word", "said"),
    [("pipeline.spacing=1", "pipeline.spacing_mm"), ("pipeline=1", "SECTION"), ("keep", ""),
     ("peers.host=a", "no such key"),
     ("pipeline.spacing_mm=kept", "no number"), ("outputs.png16=yes", "no number")],
)  # fmt: skip
def test_words_that_are_none(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_words([word])
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_command_line_before_environment_before_file_before_default(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text("[node]\nport = 1\nhost = '::1'\ndrain_s = 1\n")
    loaded = load(
        file,
        environment={"CTNODE_NODE__PORT": "2", "CTNODE_NODE__HOST": "localhost"},
        overrides={"node.port": 3},
    )
    node = loaded.config.node
    assert (node.port, node.host, node.drain_s, node.ae_title) == (3, "localhost", 1.0, "CTNODE")
    origins = {key: origin for key, _, origin, _ in explain(loaded)}
    assert [origins[f"node.{key}"] for key in ("port", "host", "drain_s", "ae_title")] == [
        "command line", "environment", str(file), "default"
    ]  # fmt: skip


def test_the_file_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, port in (("system", 1), ("config", 2), ("variable", 3), ("option", 4)):
        (tmp_path / f"{name}.toml").write_text(f"[node]\nport = {port}\n")
    from ctnode.config import loading

    monkeypatch.setattr(loading, "SYSTEM_CONFIG", tmp_path / "system.toml")
    environment = {"CTNODE_CONFIG": str(tmp_path / "variable.toml")}
    assert load(tmp_path / "option.toml", environment=environment).config.node.port == 4
    assert load(environment=environment).config.node.port == 3
    assert load(environment={}).config.node.port == 2
    (tmp_path / "config.toml").unlink()
    assert load(environment={}).config.node.port == 1
    assert load(environment={"CTNODE_CONFIG": ""}).config.node.port == 1
    (tmp_path / "system.toml").unlink()
    assert load(environment={}).file is None


@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_named_file_that_is_not_there_is_a_fault(tmp_path: Path, by: str) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match="no configuration file"):
        load(missing if by == "option" else None, environment={"CTNODE_CONFIG": str(missing)} if by != "option" else {})


def test_relative_paths_are_relative_to_the_file_else_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "c.toml").write_text("[storage]\nroot = 'data'\n[inbox]\npath = 'in'\n")
    loaded = load(Path("etc/c.toml"), environment={"CTNODE_STORAGE__RESULTS": "out"}).config
    assert loaded.root == folder / "data"
    assert Path(loaded.inbox.path) == folder / "in"
    assert loaded.results == tmp_path / "out"
    assert load(environment={}).config.root == tmp_path / "ctnode-data"
    assert load(environment={}).config.results == tmp_path / "ctnode-data" / "results"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load(environment={"CTNODE_STORAGE__ROOT": "~/x"}).config.root == tmp_path / "home" / "x"


def test_loading_makes_nothing(tmp_path: Path) -> None:
    load(environment={})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Unavailable) as gone:
        require_root(load(environment={}).config)
    assert gone.value.exit_code == 69
    assert list(tmp_path.iterdir()) == []


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("CTNODE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("CTNODE_NODE__PORT", "77")
    assert load().config.node.port == 77


# -------------------------------------------------------------------------------------------------- reload


def changed(**sections: dict[str, object]) -> Config:
    return Config.model_validate(sections)


def test_a_difference_says_what_can_be_reloaded() -> None:
    new = changed(node={"port": 1, "drain_s": 1.0}, completion={"quiet_s": 3.0})
    found = {change.key: change.reloadable for change in diff(Config(), new)}
    rules = changed(completion={"suspect": "hold"}, completion_rules=[{"name": "a", "suspect": "hold"}])
    assert reloaded(Config(), rules) == rules
    assert found == {"node.port": False, "node.drain_s": True, "completion.quiet_s": True}


def test_reloading_takes_what_can_be_taken_and_leaves_the_rest() -> None:
    peer = Peer(name="a", ae_title="A", host="h")
    target = Target(name="t", ae_title="T", host="h", port=1)
    new = Config.model_validate(
        {"node": {"port": 1, "drain_s": 1.0}, "peers": (peer.model_dump(),), "targets": (target.model_dump(),)}
    )
    taken = reloaded(Config(), new)
    assert (taken.node.port, taken.node.drain_s) == (11112, 1.0)
    assert (taken.peers, taken.targets) == ((peer,), (target,))
    assert [change.key for change in diff(taken, new)] == ["node.port"]
    assert reloaded(taken, taken) == taken


def test_the_digest_changes_with_any_value() -> None:
    assert Config().digest() == Config().digest()
    assert len({changed(node={"port": port}).digest() for port in range(1, 20)}) == 19


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().node.port = 1  # type: ignore[misc]
