"""What is shown, logged and written has no passwords, whatever form a URL has."""

import pickle
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sce.client.connection import RequestRefused
from sce.errors import ConfigError, DataError, hide_secrets, without_secrets
from sce.storage import to_place

PW = "hunter2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:hunter2@host/db", "postgresql://me:***@host/db"),
        (
            "postgresql+psycopg2://me:hunter2@host:5432/db",
            "postgresql+psycopg2://me:***@host:5432/db",
        ),
        ("'https://me:hunter2@host', line 3", "'https://me:***@host', line 3"),
        ("redis://:hunter2@host:6379", "redis://:***@host:6379"),
        ("https://hunter2@host/x", "https://***@host/x"),
        ("postgresql://me:hun/ter@2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:'hunter2'@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:123@host/db", "postgresql://me:***@host/db"),
        ("a http://x:hunter2@h and ftp://y:hunter2@i", "a http://x:***@h and ftp://y:***@i"),
        ('{"uri": "http://x:hunter2@h", "n": 1}', '{"uri": "http://x:***@h", "n": 1}'),
        (
            "postgresql://h/db?user=me&password=hunter2&a=b",
            "postgresql://h/db?user=me&password=***&a=b",
        ),
        ("postgresql://h/db?sslpassword=hunter2", "postgresql://h/db?sslpassword=***"),
        ("'https://h/?token=hunter2' is none", "'https://h/?token=***' is none"),
        ("https://h/?api_key=hunter2&sig=hunter2#x", "https://h/?api_key=***&sig=***#x"),
        ("https://h/?access-key=hunter2;key=hunter2", "https://h/?access-key=***"),
        (
            "https://b/k?X-Amz-Credential=hunter2&X-Amz-Date=1&X-Amz-Signature=hunter2",
            "https://b/k?X-Amz-Credential=***&X-Amz-Date=1&X-Amz-Signature=***",
        ),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dhunter2", "mssql+pyodbc:///?odbc_connect=***"),
        ("host=h user=me password=hunter2 port=1", "host=h user=me password=*** port=1"),
        ("(DRIVER=x;PWD=hunter2;)", "(DRIVER=x;PWD=***"),
    ],
)
def test_passwords_are_hidden_and_the_rest_is_not(text, shown):
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000/",
        "http://host:5000/#/experiments/1/runs/2",
        "sqlite:////home/me@work/a:b/mlflow.db",
        "s3://bucket/a:b@c",
        "ask me@host.org: postgresql://me@host/db?sslmode=require",
        "labels[3]: 'late: delivery' stands twice, at 10:30 @ noon",
        "http://host:8000/a@b",
        "texts: token ring = good, key = value",
    ],
)
def test_what_has_no_password_stays(text):
    assert without_secrets(text) == text


def test_a_library_that_quotes_a_password_in_another_form_is_silenced():
    uri = "postgresql://me:p%40ss%2Fword@host/db?sslpassword=other"
    said = without_secrets("cannot log in with 'p@ss/word' (p%40ss%2Fword), nor with other", uri)
    assert said == "cannot log in with '***' (***), nor with ***"


@example("0,")
@example("0?")
@example("80#")
@example("443'")
@given(
    st.text(st.characters(exclude_characters=' "@/\\', exclude_categories=["C", "Z"]), min_size=1)
)
def test_no_password_gets_through(password):
    password = f"{password}~{PW}"
    for uri in (f"postgresql://me:{password}@host/db", f"https://me:{password}@host:80/"):
        assert PW not in without_secrets(f"x {uri} y")


def test_long_texts_take_little_time():
    started = time.monotonic()
    for piece in ("://b:c", "http://", "?token", "password", "a" * 50):
        without_secrets(piece * 5_000)
    assert time.monotonic() - started < 5


def test_every_error_hides_them_also_after_it_was_pickled():
    error = RequestRefused(f"refused: https://me:{PW}@host", 400, "x", "y")
    again = pickle.loads(pickle.dumps(ConfigError(f"https://me:{PW}@host")))
    for one in (error, again):
        assert PW not in str(one)
        assert PW not in repr(one)
    assert (error.status, error.code) == (400, "x")
    with pytest.raises(DataError) as raised:
        to_place(f"https://me:{PW}@host/file")
    assert PW not in str(raised.value)


def test_plain_values_are_gone_through():
    value = {f"http://a:{PW}@h": (f"http://a:{PW}@h", 1, None, [{"x": f"?token={PW}"}])}
    assert PW not in str(hide_secrets(value))
    assert hide_secrets(value)["http://a:***@h"][1:3] == [1, None]
