"""The answers of tiles on disk, one transaction a tile, so that a killed run goes on where it was.

It is one SQLite file: the tiles that are done, their masks, and the objects joined of them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samfast.errors import InputError, OutputError
from samfast.scenes.tile_grid import Box
from samfast.scenes.tile_masks import Key, TileMask

VERSION = 2

_TABLES = """
CREATE TABLE IF NOT EXISTS job (version INTEGER, description TEXT);
CREATE TABLE IF NOT EXISTS tiles (tile INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS masks (
    tile INTEGER, number INTEGER, x0 INTEGER, y0 INTEGER, x1 INTEGER, y1 INTEGER,
    area INTEGER, predicted_iou REAL, stability REAL, x REAL, y REAL, runs TEXT,
    PRIMARY KEY (tile, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (
    id INTEGER PRIMARY KEY, x0 INTEGER, y0 INTEGER, x1 INTEGER, y1 INTEGER, area INTEGER,
    predicted_iou REAL, stability REAL, x REAL, y REAL, tiles INTEGER, cut INTEGER
);
CREATE TABLE IF NOT EXISTS pieces (
    cell INTEGER, object INTEGER, x0 INTEGER, y0 INTEGER, height INTEGER, width INTEGER, runs TEXT,
    PRIMARY KEY (cell, object)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pieces_of_object ON pieces (object);
"""


@dataclass(frozen=True)
class Piece:
    """The part of an object in one cell.

    cell    the number of the cell's tile
    object  the object's id
    box     of the part's pixels, in working pixels
    runs    COCO's text of its runs in the box
    """

    cell: int
    object: int
    box: Box
    runs: str


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene, in working pixels.

    id      from 1
    tiles   how many tiles' masks it was joined of
    cut     whether it ends at a tile's border with nothing that continues it
    """

    id: int
    box: Box
    area: int
    predicted_iou: float
    stability: float
    point: tuple[float, float]
    tiles: int
    cut: bool


class TileStore:
    """The file of a job; made if it is missing.

    description  what the job is: the scene, the grid, the options. A file of another job is refused

    Raises InputError for a file of another job or of another kind.
    """

    def __init__(self, path: Path | str, description: dict[str, Any]) -> None:
        self.path = path
        text = json.dumps(description, sort_keys=True)
        with ExitStack() as on_error:
            try:
                # The tiles' thread is not the caller's, but one thread at a time writes.
                database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
                on_error.callback(database.close)
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                database.executescript(_TABLES)
                row = database.execute("SELECT version, description FROM job").fetchone()
                if row is None:
                    database.execute("INSERT INTO job VALUES (?, ?)", (VERSION, text))
            except sqlite3.DatabaseError as error:
                raise _unusable(path, error) from error
            if row not in (None, (VERSION, text)):
                raise InputError(f"{path}: {_difference(row, text)}; remove it to begin again")
            on_error.pop_all()
        self._database = database

    def done(self) -> set[int]:
        """The tiles that are answered."""
        return {tile for (tile,) in self._database.execute("SELECT tile FROM tiles")}

    def add_tile(self, tile: int, masks: Sequence[TileMask]) -> None:
        """Keep the masks of a tile: all of them, or, if the process ends meanwhile, none."""
        rows = [
            (*m.key, *m.box, m.area, m.predicted_iou, m.stability, *m.point, m.runs) for m in masks
        ]
        with self._transaction():
            self._database.execute("INSERT INTO tiles VALUES (?)", (tile,))
            self._database.executemany(f"INSERT INTO masks VALUES ({_marks(12)})", rows)

    def masks(self, tile: int) -> list[TileMask]:
        """The masks of a tile."""
        query = "SELECT * FROM masks WHERE tile = ? ORDER BY number"
        return [_mask(row) for row in self._database.execute(query, (tile,))]

    def mask(self, key: Key) -> TileMask:
        """One mask."""
        query = "SELECT * FROM masks WHERE tile = ? AND number = ?"
        return _mask(self._database.execute(query, key).fetchone())

    def replace_objects(self, objects: Iterable[tuple[SceneObject, Sequence[Piece]]]) -> None:
        """Keep the objects instead of earlier ones."""
        with self._transaction():
            self._database.execute("DELETE FROM objects")
            self._database.execute("DELETE FROM pieces")
            for each, pieces in objects:
                self._insert(each, pieces)

    def _insert(self, each: SceneObject, pieces: Sequence[Piece]) -> None:
        scores = each.area, each.predicted_iou, each.stability
        row = (each.id, *each.box, *scores, *each.point, each.tiles, int(each.cut))
        self._database.execute(f"INSERT INTO objects VALUES ({_marks(12)})", row)
        self._database.executemany(
            f"INSERT INTO pieces VALUES ({_marks(7)})",
            [
                (p.cell, p.object, x0, y0, y1 - y0, x1 - x0, p.runs)
                for p in pieces
                for x0, y0, x1, y1 in [p.box]
            ],
        )

    def change_object(
        self, object_id: int, made: tuple[SceneObject, Sequence[Piece]] | None
    ) -> None:
        """Keep another object under that id, or none."""
        with self._transaction():
            self._database.execute("DELETE FROM objects WHERE id = ?", (object_id,))
            self._database.execute("DELETE FROM pieces WHERE object = ?", (object_id,))
            if made is not None:
                self._insert(*made)

    def boxes_near(self, cells: Sequence[int], object_id: int) -> list[Box]:
        """The boxes of the objects that have parts in these cells, but that of one."""
        query = f"""SELECT DISTINCT objects.* FROM objects JOIN pieces ON objects.id = pieces.object
            WHERE cell IN ({_marks(len(cells))}) AND objects.id != ?"""
        rows = self._database.execute(query, (*cells, object_id))
        return [(row[1], row[2], row[3], row[4]) for row in rows]

    def object_count(self) -> int:
        """The number of objects."""
        (count,) = self._database.execute("SELECT count(*) FROM objects").fetchone()
        return int(count)

    def objects(self) -> Iterator[SceneObject]:
        """The objects, by their ids."""
        with closing(self._database.execute("SELECT * FROM objects ORDER BY id")) as rows:
            for row in rows:
                yield SceneObject(
                    id=row[0],
                    box=row[1:5],
                    area=row[5],
                    predicted_iou=row[6],
                    stability=row[7],
                    point=row[8:10],
                    tiles=row[10],
                    cut=bool(row[11]),
                )

    def pieces_of(self, object_id: int) -> list[Piece]:
        """The parts of an object."""
        query = "SELECT * FROM pieces WHERE object = ? ORDER BY cell"
        return [_piece(row) for row in self._database.execute(query, (object_id,))]

    def pieces_in(self, cell: int) -> list[Piece]:
        """The parts of objects in a cell, those of the largest object first."""
        query = """SELECT pieces.* FROM pieces JOIN objects ON objects.id = pieces.object
            WHERE cell = ? ORDER BY objects.area DESC, objects.id"""
        return [_piece(row) for row in self._database.execute(query, (cell,))]

    def close(self) -> None:
        """Close the file; it stays."""
        self._database.close()

    def _transaction(self) -> _Transaction:
        return _Transaction(self._database, self.path)


class _Transaction:
    """All that is written in the block, or nothing; OutputError where it cannot be written."""

    def __init__(self, database: sqlite3.Connection, path: Path | str) -> None:
        self._database, self._path = database, path

    def __enter__(self) -> None:
        self._database.execute("BEGIN")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._database.execute("ROLLBACK" if error is not None else "COMMIT")
        if isinstance(error, sqlite3.OperationalError):  # such as a full disk
            raise OutputError(f"{self._path}: cannot be written: {error}") from error


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _mask(row: Sequence[Any]) -> TileMask:
    box: Box = (row[2], row[3], row[4], row[5])
    return TileMask((row[0], row[1]), box, row[6], row[7], row[8], (row[9], row[10]), row[11])


def _piece(row: Sequence[Any]) -> Piece:
    cell, object_id, x, y, height, width, runs = row
    return Piece(cell, object_id, (x, y, x + width, y + height), runs)


def _unusable(path: Path | str, error: sqlite3.DatabaseError) -> InputError | OutputError:
    if isinstance(error, sqlite3.OperationalError):
        return OutputError(f"{path}: cannot be written: {error}; choose another path")
    return InputError(f"{path}: not a file of tiles ({error}); remove it, or choose another path")


def _difference(row: tuple[int, str], text: str) -> str:
    """What another job's file says differently."""
    if row[0] != VERSION:
        return "tiles of another version of samfast"
    old, new = json.loads(row[1]), json.loads(text)
    keys = [key for key in new if old.get(key) != new[key]]
    was = ", ".join(f"{key} was {old.get(key)!r}" for key in keys)
    return f"it holds tiles of another run ({was})"
