"""Settings from the environment.

With nothing set, everything is kept in embedded stores under ``IMGSEARCH_HOME``.
The variables of the original demo keep their meaning.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

import platformdirs
from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import URL, make_url

from imgsearch.errors import ConfigError
from imgsearch.io import absolute

COLLECTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def collection_name(name: str) -> str:
    """Return the name of a collection unchanged, or raise ConfigError if it is not valid."""
    if not isinstance(name, str) or not COLLECTION_NAME.fullmatch(name):
        raise ConfigError(
            "collection",
            f"{str(name)[:80]!r} is not a valid collection name: use letters, digits and "
            "underscores, do not start with a digit, and use 64 characters at most",
        )
    return name


def as_collection_name(text: str) -> str:
    """Turn any text, such as the name of a folder, into a valid collection name.

    Examples
    --------
    >>> as_collection_name("My Photos 2026"), as_collection_name("2026")
    ('My_Photos_2026', 'images_2026')
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_]+", "_", plain).strip("_")
    return (name if COLLECTION_NAME.match(name) else f"images_{name}".rstrip("_"))[:64]


def _default_home() -> Path:
    """Return the folder of earlier versions if it exists, else the platform's user data folder."""
    former = absolute("~/.local/share/imgsearch")
    return former if former.is_dir() else platformdirs.user_data_path("imgsearch", appauthor=False)


class Settings(BaseSettings):
    """Settings of imgsearch, each read from the environment variable of its name in upper case.

    Use :func:`load_settings`, which reports invalid values as a :class:`ConfigError`.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    imgsearch_home: Annotated[Path, AfterValidator(absolute)] = Field(
        default_factory=_default_home,
        description="folder of the embedded stores and of cached weights",
    )
    imgsearch_encoder: str = Field(
        "resnet50",
        description="encoder of a new collection: a name or the path of an ONNX file",
    )
    imgsearch_weights: Path | None = Field(
        None, description="file with the encoder's weights, instead of the cache or a download"
    )
    imgsearch_device: str = Field(
        "auto", description="device of the encoder: auto, cpu, cuda, cuda:1, mps"
    )
    imgsearch_precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="arithmetic of the encoder: auto (chosen for the hardware), fp32, bf16, fp16",
    )
    imgsearch_backend: Literal["auto", "eager", "compile", "openvino", "onnxruntime"] = Field(
        "auto",
        description="library that runs the encoder, if it supports it: auto, eager, compile, "
        "openvino, onnxruntime",
    )
    imgsearch_index: str = Field(
        "auto",
        description="index of a new collection: auto (exact search in the embedded store, HNSW "
        "on a server), FLAT, HNSW, IVF_FLAT, AUTOINDEX, with parameters as in HNSW:M=16,ef=128",
    )
    imgsearch_timeout: float = Field(
        10.0, gt=0, description="seconds without an answer after which a server counts as down"
    )
    milvus_uri: str | None = Field(None, description="a Milvus server, http://host:port")
    milvus_token: SecretStr | None = Field(None, description="user:password or API key of Milvus")
    milvus_host: str | None = Field(None, description="host of Milvus, instead of MILVUS_URI")
    milvus_port: int = Field(19530, ge=1, le=65535, description="port at MILVUS_HOST")
    vector_dimension: int | None = Field(
        None, gt=0, description="if set, encoders of any other dimension are refused"
    )
    database_url: SecretStr | None = Field(
        None, description="SQLAlchemy URL, mysql+pymysql://… or sqlite:///…"
    )
    mysql_host: str | None = Field(None, description="host of MySQL, instead of DATABASE_URL")
    mysql_port: int = Field(3306, ge=1, le=65535, description="port at MYSQL_HOST")
    mysql_user: str = Field("root", description="user at MYSQL_HOST")
    mysql_password: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("mysql_password", "mysql_pwd"),
        description="password at MYSQL_HOST; MYSQL_PWD, its name in the original demo, works too",
    )
    mysql_db: str = Field("imgsearch", description="database at MYSQL_HOST")
    default_table: Annotated[str, AfterValidator(collection_name)] = Field(
        "images", description="collection that is used if none is named"
    )
    imgsearch_token: SecretStr | None = Field(
        None, description="token of the web server's administrator; by default a random one"
    )
    top_k: int = Field(
        10,
        ge=1,
        le=16_384,
        description="default number of results of the web server's /img/search",
    )
    upload_path: Annotated[Path, AfterValidator(absolute)] | None = Field(
        None,
        description="folder of the web server's uploads; by default uploads/ in IMGSEARCH_HOME",
    )

    @model_validator(mode="before")
    @classmethod
    def _hide_credentials(cls, values: dict) -> dict:
        """Move ``user:password@`` from the address to the token, which is never displayed."""
        uri = values.get("milvus_uri")
        if not isinstance(uri, str) or "@" not in uri:
            return values
        before, _, host = uri.rpartition("@")
        scheme, slashes, credentials = before.rpartition("//")
        token = values.get("milvus_token") or unquote(credentials)
        return values | {"milvus_uri": scheme + slashes + host, "milvus_token": token}

    @property
    def embedded_vectors(self) -> bool:
        """Whether vectors are kept in the embedded store of the home."""
        return self.milvus_address is None

    @property
    def milvus_address(self) -> str | None:
        """``http://host:port`` of the Milvus server, or None for the embedded store."""
        if self.milvus_uri is None and self.milvus_host is not None:
            return f"http://{self.milvus_host}:{self.milvus_port}"
        return self.milvus_uri

    @property
    def sql_url(self) -> URL:
        """SQLAlchemy URL of the metadata store; ``str`` of it hides the password."""
        if self.database_url is not None:
            try:
                url = make_url(self.database_url.get_secret_value())
            except Exception:  # its text holds the URL, and so the password
                raise ConfigError("DATABASE_URL", "is not a valid SQLAlchemy URL") from None
            if url.get_backend_name() == "sqlite":
                return url
            if url.get_backend_name() in ("mysql", "mariadb"):
                return url.set(drivername="mysql+pymysql")
            reason = f"{url.drivername} is not supported: use mysql+pymysql://… or sqlite:///…"
            raise ConfigError("DATABASE_URL", reason)
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
    """Read the settings from the environment.

    Parameters
    ----------
    **overrides
        Values by field name that take precedence over the environment.

    Returns
    -------
    Settings

    Raises
    ------
    ConfigError
        A variable has an invalid value. The error names the variable.

    Examples
    --------
    >>> load_settings(milvus_host="db.example", milvus_port=19531).milvus_address
    'http://db.example:19531'
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"])).upper() or "settings"
        cause = first.get("ctx", {}).get("error")
        raise ConfigError(name, getattr(cause, "reason", first["msg"])) from None
