"""Settings from the environment.

With nothing set, everything lives in embedded stores under ``IMGSEARCH_HOME``.
The names that the original demo used keep their meaning.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import URL, make_url

from imgsearch.errors import ConfigError

COLLECTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Settings(BaseSettings):
    """What the environment says. Each field is an environment variable in upper case.

    Raises
    ------
    ConfigError
        From :func:`load_settings`, when a variable has a value that cannot be used.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    imgsearch_home: Path = Field(
        Path("~/.local/share/imgsearch"),
        description="folder of the embedded stores and of cached weights",
    )
    imgsearch_encoder: str = Field(
        "resnet50", description="encoder of a new collection: a name or the path of a .pt2"
    )
    imgsearch_weights: Path | None = Field(
        None, description="file with the encoder's weights, instead of cache and download"
    )
    imgsearch_device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    imgsearch_precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="arithmetic of the encoder: auto (what suits the hardware), fp32, bf16, fp16",
    )
    imgsearch_backend: Literal["auto", "eager", "compile", "openvino"] = Field(
        "auto", description="what runs the encoder: auto, eager, compile, openvino"
    )
    imgsearch_index: str = Field(
        "auto",
        description="index of a new collection: auto, HNSW, FLAT, IVF_FLAT, AUTOINDEX, with "
        "parameters as in HNSW:M=16,efConstruction=200",
    )
    imgsearch_timeout: float = Field(
        10.0, gt=0, description="seconds after which a silent server is an error"
    )
    milvus_uri: str | None = Field(None, description="a Milvus server or cluster, http://host:port")
    milvus_token: SecretStr | None = Field(None, description="user:password or API key of Milvus")
    milvus_host: str | None = Field(None, description="a Milvus server, instead of MILVUS_URI")
    milvus_port: int = Field(19530, ge=1, le=65535, description="port beside MILVUS_HOST")
    vector_dimension: int | None = Field(
        None, gt=0, description="if set, encoders of another dimension are refused"
    )
    database_url: SecretStr | None = Field(
        None, description="SQLAlchemy URL, mysql+pymysql://… or sqlite:///…"
    )
    mysql_host: str | None = Field(None, description="a MySQL server, instead of DATABASE_URL")
    mysql_port: int = Field(3306, ge=1, le=65535, description="port beside MYSQL_HOST")
    mysql_user: str = Field("root", description="user beside MYSQL_HOST")
    mysql_password: SecretStr | None = Field(None, description="password beside MYSQL_HOST")
    mysql_db: str = Field("imgsearch", description="database beside MYSQL_HOST")
    default_table: str = Field("images", description="collection that is used where none is named")

    @model_validator(mode="before")
    @classmethod
    def _hide_credentials(cls, values: dict) -> dict:
        """Take ``user:password@`` out of the address: settings are shown, tokens are not."""
        uri = values.get("milvus_uri")
        if not isinstance(uri, str) or "@" not in uri:
            return values
        before, _, host = uri.rpartition("@")
        scheme, slashes, credentials = before.rpartition("//")
        token = values.get("milvus_token") or unquote(credentials)
        return values | {"milvus_uri": scheme + slashes + host, "milvus_token": token}

    @field_validator("imgsearch_home")
    @classmethod
    def _expand(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("default_table")
    @classmethod
    def _name(cls, name: str) -> str:
        return collection_name(name)

    @property
    def embedded_vectors(self) -> bool:
        """Whether vectors live in the embedded store of the home."""
        return self.milvus_uri is None and self.milvus_host is None

    @property
    def milvus_address(self) -> str | None:
        """``http://host:port`` of the Milvus server, None with the embedded store."""
        if self.milvus_uri is not None:
            return self.milvus_uri
        if self.milvus_host is not None:
            return f"http://{self.milvus_host}:{self.milvus_port}"
        return None

    @property
    def sql_url(self) -> URL:
        """SQLAlchemy URL of the metadata store (``str`` of it hides the password).

        Raises
        ------
        ConfigError
            ``DATABASE_URL`` is no URL, or of another kind than MySQL and SQLite.
        """
        if self.database_url is not None:
            try:
                url = make_url(self.database_url.get_secret_value())
            except Exception:  # its text holds the URL, and so the password
                raise ConfigError("DATABASE_URL", "is not an SQLAlchemy URL") from None
            if url.get_backend_name() not in ("mysql", "mariadb", "sqlite"):
                raise ConfigError(
                    "DATABASE_URL",
                    f"{url.drivername} is not supported: use mysql+pymysql://… or sqlite:///…",
                )
            return (
                url.set(drivername="mysql+pymysql") if url.get_backend_name() != "sqlite" else url
            )
        if self.mysql_host is not None:
            password = self.mysql_password
            return URL.create(
                "mysql+pymysql",
                username=self.mysql_user,
                password=password.get_secret_value() if password else None,
                host=self.mysql_host,
                port=self.mysql_port,
                database=self.mysql_db,
            )
        return URL.create("sqlite", database=str(self.imgsearch_home / "metadata.sqlite"))


def load_settings(**overrides: object) -> Settings:
    """Read the settings from the environment, now.

    Parameters
    ----------
    **overrides
        Values that win over the environment, by field name.

    Returns
    -------
    Settings

    Raises
    ------
    ConfigError
        A variable has a value that cannot be used; names the variable.

    Examples
    --------
    >>> load_settings(milvus_host="db.example", milvus_port=19531).milvus_address
    'http://db.example:19531'
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = ".".join(map(str, first["loc"])).upper() or "settings"
        raise ConfigError(name, first["msg"].removeprefix("Value error, ")) from None


def collection_name(name: str) -> str:
    """Check the name of a collection.

    Parameters
    ----------
    name : str
        Letters, digits and underscores, not beginning with a digit, at most 64:
        what Milvus and MySQL both take.

    Returns
    -------
    str
        The same name.

    Raises
    ------
    ConfigError
        The name has another form.

    Examples
    --------
    >>> collection_name("voc2012")
    'voc2012'
    """
    if not isinstance(name, str) or not COLLECTION_NAME.fullmatch(name):
        raise ConfigError(
            "collection",
            f"{str(name)[:80]!r} is no name for a collection: use letters, digits and _, "
            "not a digit first, at most 64",
        )
    return name
