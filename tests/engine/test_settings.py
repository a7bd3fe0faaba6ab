"""What settings show of themselves."""

from __future__ import annotations

from typing import get_type_hints

from nimburion.core.settings import Config, Settings, SettingsOptions


def test_no_password_is_shown() -> None:
    settings = Settings(url="postgresql://app:s3cret@db.example.com/jobs")
    for shown in (repr(settings), str(settings), repr(Config(jobs=settings))):
        assert "s3cret" not in shown
        assert "postgresql://app:***@db.example.com/jobs" in shown


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    assert "url='sqlite:///jobs.db'" in repr(Settings(url="sqlite:///jobs.db"))


def test_the_keywords_of_a_processor_are_the_settings() -> None:
    assert get_type_hints(SettingsOptions) == get_type_hints(Settings)
