"""What lies around the package agrees with it and with itself."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from imgsearch.config import Settings
from tests.conftest import ROOT

# conda-forge's names where they are not PyPI's
CONDA_NAMES = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "prometheus-client": "prometheus_client",
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN")


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads(_text("pyproject.toml"))["project"]


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load(_text("docker-compose.yaml"))


# ---- environments ------------------------------------------------------------------------------


def test_the_conda_environment_asks_for_what_pyproject_asks_for(project):
    wanted = {f"python{project['requires-python']}", "pip"}
    extras = project["optional-dependencies"]
    for text in project["dependencies"] + [
        text for extra in ("notebooks", "openvino", "server") for text in extras[extra]
    ]:
        requirement = Requirement(text)
        wanted.add(str(requirement))
    listed = yaml.safe_load(_text("environment.yml"))["dependencies"]
    (by_pip,) = (entry["pip"] for entry in listed if isinstance(entry, dict))
    by_conda = {value: key for key, value in CONDA_NAMES.items()}
    found = {str(Requirement(text)) for text in by_pip if text != "-e ."}
    for text in listed:
        if isinstance(text, str):
            name, rest = re.fullmatch(r"([a-z0-9_-]+)(.*)", text).groups()
            found.add(str(Requirement(by_conda.get(name, name) + rest)))
    assert found == {str(Requirement(text)) for text in wanted}
    assert "-e ." in by_pip


def test_the_lock_pins_every_requirement_within_its_range(project):
    lines = [line for line in _text("requirements.lock").splitlines() if not line.startswith("#")]
    pins = {}
    for line in lines:
        # No path, no address, no suffix of a build: another machine can use it.
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
        name, version = line.split("==")
        pins[canonicalize_name(name)] = version
    assert len(pins) == len(lines)
    extras = project["optional-dependencies"]
    for text in project["dependencies"] + [
        text for extra in ("notebooks", "openvino", "server", "test") for text in extras[extra]
    ]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


# ---- containers --------------------------------------------------------------------------------


def test_the_compose_file_keeps_to_the_specification(compose):
    # The schema is compose-go's schema/compose-spec.json, v2.40.3, Apache-2.0.
    schema = json.loads((ROOT / "tests" / "compose-spec.json").read_text(encoding="utf-8"))
    import jsonschema

    jsonschema.Draft7Validator(schema).validate(compose)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate({"services": {"lab": {"prots": []}}})


def test_no_service_of_the_compose_file_works_with_a_password_left_out(compose):
    secrets = []
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name) and name != "MYSQL_RANDOM_ROOT_PASSWORD":
                secrets.append(name)
                assert re.search(r"\$\{[A-Z_]+:\?[^}]+\}$", value), (name, value)
    assert {
        "MYSQL_PASSWORD",
        "MINIO_ROOT_PASSWORD",
        "JUPYTER_TOKEN",
        "MILVUS_TOKEN",
        "IMGSEARCH_TOKEN",
    } <= {*secrets}
    assert not re.search(r"\$\{[A-Z_]*(PASSWORD|SECRET|TOKEN)[A-Z_]*:?-", str(compose))


def test_the_compose_file_publishes_on_loopback_only(compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not any("network_mode" in service for service in compose["services"].values())


def test_services_wait_for_healthy_ones_and_images_are_pinned(compose):
    services = compose["services"]
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[other]
        if "build" not in service:
            assert re.search(r":[^:]*\d", service["image"])
    assert "HEALTHCHECK" in _text("Dockerfile")


@pytest.mark.parametrize("name", ["lab", "webserver"])
def test_a_service_is_told_what_the_settings_read_and_sees_images_read_only(compose, name):
    service = compose["services"][name]
    names = {name.lower() for name in service["environment"]}
    assert names - {"jupyter_token"} <= set(Settings.model_fields)
    assert {"milvus_host", "mysql_host", "mysql_user", "mysql_db"} <= names
    bound = {v["target"]: v for v in service["volumes"] if isinstance(v, dict)}
    assert bound["/images"]["read_only"] is bound["/data"]["read_only"] is True
    assert bound["/images"]["source"].startswith("${IMAGES:?")
    assert bound["/data"]["source"] == "./data"
    assert "USER lab" in _text("Dockerfile")


def test_the_web_server_is_where_the_original_demo_has_it(compose):
    service = compose["services"]["webserver"]
    assert service["ports"] == ["127.0.0.1:${WEB_PORT:-5000}:5000"]
    assert set(service["depends_on"]) == {"milvus", "mysql"}
    assert {"imgsearch.server", "--root", "/data"} <= set(service["command"])


def test_the_example_explains_every_variable_that_compose_asks_for():
    example = _text(".env.example").splitlines()
    for name in set(re.findall(r"\$\{([A-Z_]+)[:}]", _text("docker-compose.yaml"))):
        (line,) = (i for i, text in enumerate(example) if re.match(rf"#?{name}=", text))
        above = example[:line]
        while above[-1].startswith("#") and "=" in above[-1]:
            above.pop()  # one comment may stand over several variables
        assert above[-1].startswith("# "), name
    asked = set(re.findall(r"\$\{([A-Z_]+):\?", _text("docker-compose.yaml")))
    assert asked == {line.removesuffix("=") for line in example if re.fullmatch(r"[A-Z_]+=", line)}
    assert ".env" in _text(".gitignore").split()


def test_the_image_is_built_from_files_that_are_sent_to_the_builder():
    sent = {line[1:] for line in _text(".dockerignore").splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?:--\S+ )*(.+)$", _text("Dockerfile"), re.M):
        for source in line.split()[:-1]:
            assert source in sent
            assert (ROOT / source).exists(), source


def test_the_lab_listens_on_loopback():
    settings = json.loads(_text("jupyter/jupyter_server_config.json"))
    assert settings["ServerApp"]["ip"] == "127.0.0.1"


# ---- notebooks ---------------------------------------------------------------------------------


def test_the_four_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["admin", "evaluation", "ingest", "search"]


def test_the_lab_opens_on_a_page_that_links_to_every_notebook():
    lab = json.loads(_text("jupyter/jupyter_server_config.json"))["LabApp"]
    page = ROOT / lab["default_url"].removeprefix("/lab/tree/")
    links = set(re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")))
    assert links == {path.name for path in NOTEBOOKS}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request) -> dict:
    return json.loads(request.param.read_text(encoding="utf-8"))


def _code(notebook: dict) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_a_notebook_is_stripped(notebook):
    assert not {"papermill", "widgets", "signature"} & set(notebook["metadata"])
    for cell in notebook["cells"]:
        assert not {"papermill", "execution", "collapsed"} & set(cell["metadata"])
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert cell["cell_type"] != "code" or cell["metadata"]["jupyter"]["source_hidden"]


def test_a_notebook_is_thin(notebook):
    for source in _code(notebook):
        python = re.sub(r"^[ \t]*[%!].*$", "pass", source, flags=re.M)
        tree = compile(python, "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef), (
                f"{node.name} belongs in the package"
            )


def test_a_notebook_runs_in_batch(notebook):
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    (cell,) = (c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    source = "".join(cell["source"])
    for line in source.splitlines():
        comment = line.partition("#")[2]
        assert "=" not in comment, f"papermill stumbles over {line!r}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            assert not re.search(r"password|token|secret", node.id, re.I), "papermill writes it"


def test_a_notebook_holds_no_path_of_a_user(notebook):
    assert not re.search(r"/(home|Users|root|mnt)/\w|[A-Z]:\\\\", "\n".join(_code(notebook)))


# ---- what the README says ----------------------------------------------------------------------


def test_the_readme_describes_every_setting():
    described = dict(re.findall(r"^\| `([A-Z_]+)` \|[^|]*\| (.+) \|$", _text("README.md"), re.M))
    fields = Settings.model_fields.items()
    assert described == {name.upper(): field.description for name, field in fields}


def test_the_help_lists_every_make_target_and_the_documents_name_no_other():
    makefile = _text("Makefile")
    targets = set(re.search(r"^\.PHONY: (.+)$", makefile, re.M)[1].split())
    assert targets - {"help"} == set(re.findall(r"^([a-z]+):[^#\n]*##", makefile, re.M)) - {"help"}
    documents = "".join(map(_text, ["README.md", "CONTRIBUTING.md"]))
    documents += "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert {"demo", "test", "lab"} <= set(re.findall(r"\bmake ([a-z]+)\b", _text("README.md")))
    assert set(re.findall(r"`make ([a-z]+)\b", documents)) <= targets


def test_files_that_the_readme_links_to_exist():
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", _text("README.md"))
    assert [link for link in links if not Path(ROOT / link).exists()] == []


def test_the_guarantees_name_tests_that_exist():
    promised = re.findall(
        r"`((?:tests/[\w/]+/)?test_\w+\.py|tests/test_\w+\.py)(?:::(\w+))?`",
        _text("docs/guarantees.md"),
    )
    assert len(promised) > 40
    for file, name in promised:
        path = ROOT / file if "/" in file else ROOT / "tests" / "guarantees" / file
        assert path.is_file(), file
        assert not name or f"\ndef {name}(" in path.read_text(encoding="utf-8"), (file, name)
