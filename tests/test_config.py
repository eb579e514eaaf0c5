from __future__ import annotations

from pathlib import Path

import pytest

from imgsearch.config import as_collection_name, collection_name, load_settings
from imgsearch.errors import ConfigError


def test_the_defaults_are_embedded_stores(monkeypatch, tmp_path):
    monkeypatch.delenv("IMGSEARCH_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    found = load_settings()
    assert found.embedded_vectors
    assert found.sql_url.get_backend_name() == "sqlite"
    assert Path(found.sql_url.database).parent == found.imgsearch_home
    assert found.imgsearch_home == tmp_path / "data" / "imgsearch"


def test_the_default_home_of_earlier_versions_stays_in_use(monkeypatch, tmp_path):
    monkeypatch.delenv("IMGSEARCH_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    former = tmp_path / ".local" / "share" / "imgsearch"
    former.mkdir(parents=True)
    assert load_settings().imgsearch_home == former


def test_a_home_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMGSEARCH_HOME", "a/../b")
    assert load_settings().imgsearch_home == tmp_path / "b"


def test_the_variables_of_the_original_demo_keep_their_meaning(monkeypatch):
    for name, value in {
        "MILVUS_HOST": "10.0.0.1",
        "MILVUS_PORT": "19531",
        "MYSQL_HOST": "10.0.0.2",
        "MYSQL_PORT": "3307",
        "MYSQL_USER": "me",
        "MYSQL_PASSWORD": "p@ss/word",
        "MYSQL_DB": "mine",
        "DEFAULT_TABLE": "milvus_imgs",
        "VECTOR_DIMENSION": "2048",
    }.items():
        monkeypatch.setenv(name, value)
    found = load_settings()
    assert found.milvus_address == "http://10.0.0.1:19531"
    url = found.sql_url
    assert (url.drivername, url.host, url.port) == ("mysql+pymysql", "10.0.0.2", 3307)
    assert (url.username, url.password, url.database) == ("me", "p@ss/word", "mine")
    assert (found.default_table, found.vector_dimension) == ("milvus_imgs", 2048)


def test_the_variables_of_the_original_server_work(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "MYSQL_HOST": "db",
        "MYSQL_PWD": "123456",
        "TOP_K": "7",
        "UPLOAD_PATH": "tmp/search-images",
    }.items():
        monkeypatch.setenv(name, value)
    found = load_settings()
    assert found.sql_url.password == "123456"
    assert (found.top_k, found.upload_path) == (7, tmp_path / "tmp" / "search-images")
    monkeypatch.setenv("MYSQL_PASSWORD", "another")
    assert load_settings().sql_url.password == "another"
    assert load_settings(mysql_password="given").sql_url.password == "given"


def test_addresses_take_precedence_over_hosts(monkeypatch):
    monkeypatch.setenv("MILVUS_HOST", "ignored")
    monkeypatch.setenv("MILVUS_URI", "http://cluster:19530")
    monkeypatch.setenv("MYSQL_HOST", "ignored")
    monkeypatch.setenv("DATABASE_URL", "mysql://me:secret@db/images")
    found = load_settings()
    assert found.milvus_address == "http://cluster:19530"
    assert found.sql_url.drivername == "mysql+pymysql"
    assert found.sql_url.host == "db"


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("MILVUS_HOST", "")
    monkeypatch.setenv("VECTOR_DIMENSION", "")
    assert load_settings().embedded_vectors
    assert load_settings().vector_dimension is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MILVUS_PORT", "http"),
        ("MILVUS_PORT", "70000"),
        ("MYSQL_PORT", "0"),
        ("VECTOR_DIMENSION", "-1"),
        ("IMGSEARCH_TIMEOUT", "0"),
        ("IMGSEARCH_PRECISION", "fp64"),
        ("DEFAULT_TABLE", "drop table;"),
        ("IMGSEARCH_HOME", "~nobody-of-this-name/x"),
    ],
)
def test_an_invalid_value_is_reported_with_its_variable(monkeypatch, name, value):
    """Attack row 10: a home of an unknown user raised a bare RuntimeError."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name) as caught:
        load_settings()
    assert caught.value.name == name
    assert "collection:" not in str(caught.value)
    assert "path:" not in str(caught.value)


@pytest.mark.parametrize("url", ["nonsense", "postgresql://me:s3cret@db/x", "mysql//s3cret"])
def test_an_invalid_database_url_is_reported_without_its_password(monkeypatch, url):
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(ConfigError, match="DATABASE_URL") as caught:
        _ = load_settings().sql_url
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_no_text_of_the_settings_contains_a_secret(monkeypatch):
    for name in ("MYSQL_PASSWORD", "MILVUS_TOKEN"):
        monkeypatch.setenv(name, "s3cret-s3cret")
    monkeypatch.setenv("DATABASE_URL", "mysql://me:s3cret-s3cret@db/images")
    found = load_settings()
    for text in (repr(found), str(found), found.model_dump_json(), str(found.sql_url)):
        assert "s3cret" not in text


@pytest.mark.parametrize("name", ["a", "_x9", "A" * 64])
def test_names_that_both_stores_accept(name):
    assert collection_name(name) == name


@pytest.mark.parametrize("name", ["", "9a", "a-b", "a b", "ä", "A" * 65, "a\n", "../x", None, 7])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="collection"):
        collection_name(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [("My Photos 2026", "My_Photos_2026"), ("2026", "images_2026"), ("Été", "Ete"),
     ("日本", "images"), ("", "images"), ("mine", "mine"), ("x" * 80, "x" * 64)],
)  # fmt: skip
def test_any_text_becomes_a_name(text, name):
    assert collection_name(as_collection_name(text)) == name
