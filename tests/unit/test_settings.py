"""Settings: defaults, bounds, environment, keys, masked output."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import MIB, Settings, SettingsError, flag_of, load_settings


def test_defaults_are_the_documented_ones():
    settings = Settings()
    assert (settings.http_port, settings.grpc_port, settings.metrics_port) == (8000, 50051, 9090)
    assert (settings.max_queued_requests, settings.max_queued_audio_seconds) == (256, 3600)
    assert (settings.queue_timeout, settings.request_timeout, settings.sse_keepalive) == (30, 300, 3)
    assert settings.max_upload_bytes == 25 * MIB
    assert settings.max_body_bytes == 25 * MIB * 4 // 3 + 64 * 1024
    assert (settings.max_prompt_chars, settings.max_new_tokens) == (4000, 512)
    assert (settings.drain_delay, settings.shutdown_timeout) == (5, 60)
    assert settings.audio_limit_s(300.0) == 120.0
    assert settings.audio_limit_s(30.0) == 30.0


def test_every_field_has_a_description():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_environment_is_read_and_flags_win(monkeypatch):
    monkeypatch.setenv("WAVLLM_HTTP_PORT", "8111")
    monkeypatch.setenv("WAVLLM_GRPC_PORT", "8222")
    settings = load_settings({"grpc_port": "8333"})
    assert (settings.http_port, settings.grpc_port) == (8111, 8333)


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().http_port = 1


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"http_port": "70000"}, "--http-port"),
        ({"http_port": "x"}, "--http-port"),
        ({"max_queued_requests": "0"}, "--max-queued-requests"),
        ({"queue_timeout": "nan"}, "--queue-timeout"),
        ({"request_timeout": "inf"}, "--request-timeout"),
        ({"drain_delay": "-1"}, "--drain-delay"),
        ({"device": "gpu"}, "--device"),
        ({"dtype": "int8"}, "--dtype"),
        ({"kv_cache_fraction": "1.5"}, "--kv-cache-fraction"),
        ({"log_level": "chatty"}, "--log-level"),
        ({"tls_cert": "a.pem"}, "--tls-cert"),
        ({"tls_client_ca": "a.pem"}, "--tls-client-ca"),
        ({"max_inflight_mb": "30"}, "--max-inflight-mb"),
        ({"http_port": "5000", "grpc_port": "5000"}, "--grpc-port"),
        ({"max_audio_seconds": "0.05"}, "--max-audio-seconds"),
        ({"colour": "red"}, "--colour"),
        ({"api_key": ("with space",)}, "--api-key"),
    ],
)
def test_a_bad_setting_is_refused_by_the_name_of_its_flag(given, flag):
    with pytest.raises(SettingsError) as caught:
        load_settings(given)
    assert flag in str(caught.value)


def test_keys_come_from_flags_environment_and_file(monkeypatch, tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("# a comment\nfrom-file\n\nsecond\n")
    monkeypatch.setenv("WAVLLM_API_KEY", "key-one, key-two")
    settings = load_settings({"api_key_file": file})
    assert settings.load_api_keys() == ("key-one", "key-two", "from-file", "second")
    assert "key-one" not in settings.model_dump_json()


@pytest.mark.parametrize("value", [" ", ",", " , ,", "\n"])
def test_a_variable_that_holds_no_key_does_not_open_the_server(monkeypatch, value):
    monkeypatch.setenv("WAVLLM_API_KEY", value)
    with pytest.raises(SettingsError, match=r"^--api-key: WAVLLM_API_KEY holds no key"):
        load_settings()


def test_an_empty_variable_is_none(monkeypatch):
    """As compose hands it on where nobody set it."""
    monkeypatch.setenv("WAVLLM_API_KEY", "")
    assert load_settings().load_api_keys() == ()


def test_a_key_file_without_keys_is_refused(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("# none\n")
    with pytest.raises(SettingsError, match="holds no key"):
        load_settings({"api_key_file": file}).load_api_keys()
    with pytest.raises(SettingsError, match="--api-key-file"):
        load_settings({"api_key_file": tmp_path / "missing"}).load_api_keys()


def test_errors_never_show_a_key():
    with pytest.raises(SettingsError) as caught:
        load_settings({"api_key": ("secret key",)})
    assert "secret" not in str(caught.value)


def test_flag_names():
    assert flag_of("max_upload_mb") == "--max-upload-mb"
