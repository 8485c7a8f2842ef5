"""What the journeys share: photos to train on, and the command line in this process."""

from pathlib import Path

import pytest

from tests.flows.commands import Answer, Unveil, save_photo
from unveil.cli.main import main


@pytest.fixture
def unveil(capfd: pytest.CaptureFixture[str]) -> Unveil:
    """Runs a command in this process, which spares the seconds that importing torch takes."""

    def run(*arguments: object) -> Answer:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 photos in nested folders, and a file that is none. Tests must not change it."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(30):
        save_photo(folder / f"year {2020 + number % 3}" / "trip" / f"{number:03d}.jpg", number)
    (folder / "notes.txt").write_text("not an image")
    return folder
