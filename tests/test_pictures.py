"""Pictures for previews: sizes, positions, colors of frames."""

from pathlib import Path

import torch
from PIL import Image

from sslkit.pictures import add_frame, contact_sheets, draw_previews, pad_or_shrink, side_by_side, tile_grid, to_rgb


def test_colors_of_any_number_of_channels() -> None:
    for channels in (1, 2, 3, 5):
        assert to_rgb(torch.rand(2, 4, channels, 6, 6)).shape == (2, 4, 3, 6, 6)


def test_frames_show_correct_and_incorrect() -> None:
    picture = add_frame(torch.full((2, 1, 4, 4), 0.5), torch.tensor([True, False]))
    assert picture.shape == (2, 3, 6, 6) and (picture[..., 1:-1, 1:-1] == 0.5).all()
    correct, incorrect = picture[:, :, 0, 0]
    assert correct.argmax() == 1 and incorrect.argmax() == 0  # green, red


def test_boards_have_tiles_in_their_places() -> None:
    tiles = torch.arange(9.0).view(1, 9, 1, 1, 1).expand(2, 9, 3, 4, 4) / 10
    picture = tile_grid(tiles, 3)
    assert picture.shape == (2, 3, 14, 14)
    for place in range(9):
        row, column = divmod(place, 3)
        assert torch.allclose(picture[0, 0, 5 * row : 5 * row + 4, 5 * column : 5 * column + 4], torch.tensor(place / 10))
    assert (picture[:, :, 4] == 1).all()


def test_columns_of_any_sizes() -> None:
    columns = side_by_side(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 7, 7))
    assert columns.shape == (2, 2, 3, 7, 7)
    assert (columns[:, 0, :, 1:5, 1:5] == 0).all() and (columns[:, 0, :, 0] == 1).all()
    assert pad_or_shrink(torch.rand(2, 3, 3, 9, 9), 4).shape == (2, 3, 3, 4, 4)


def test_contact_sheets_show_the_largest_clusters() -> None:
    image = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 3, 2, 2) / 10
    labels = torch.tensor([2, 0, 2, 0, 2, 5, 2, 0, 2, 2])
    sheet = contact_sheets(image, labels, rows=2, columns=4)
    assert sheet.shape == (2, 4, 3, 2, 2)
    assert torch.allclose(sheet[0, :, 0, 0, 0], torch.tensor([0.0, 0.2, 0.4, 0.6]))
    assert torch.allclose(sheet[1, :, 0, 0, 0], torch.tensor([0.1, 0.3, 0.7, 1.0]))  # white beyond the last


def test_the_file_has_every_picture(tmp_path: Path) -> None:
    pictures = torch.rand(3, 2, 1, 16, 16)
    with open(tmp_path / "p.png", "wb") as stream:
        draw_previews(pictures, ("first", "second"), stream)
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.size == (2 * 102 + 6, 3 * 102 + 6 + 21)  # sixteen pixels six times as large, gaps, a title
        assert sheet.getpixel((10, 30)) == (round(float(pictures[0, 0, 0, 0, 0]) * 255),) * 3
