"""The methods of `SamFast` for images larger than the model's window."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Unpack, cast

from samfast.automatic_masks.options import SegmentOptions
from samfast.types import Progress, Prompts

if TYPE_CHECKING:
    from samfast.scenes.band_scaling import ValueRange
    from samfast.scenes.embed_scene import EmbeddedScene
    from samfast.scenes.open_scene import SceneLike
    from samfast.scenes.scene_engine import SceneEngine
    from samfast.scenes.scene_objects import SceneObjects
    from samfast.scenes.window_embeddings import EmbeddingCache


class SceneMethods:
    """`segment_large`, `predict_large` and `embed_large`, over the methods for images."""

    def segment_large(
        self,
        scene: SceneLike,
        *,
        tile: int = 1024,
        overlap: int = 128,
        resolution: float | None = None,
        bands: tuple[int, ...] | None = None,
        percentiles: tuple[float, float] | None = None,
        value_range: ValueRange | None = None,
        nodata: float | None = None,
        origin: tuple[int, int] = (0, 0),
        complete_cut: bool = False,
        workspace: str | os.PathLike[str] | None = None,
        progress: Progress | bool = False,
        **options: Unpack[SegmentOptions],
    ) -> SceneObjects:
        """Everything in a scene, tile by tile; needs the extra `large`.

        scene        a path or URL of a raster (GeoTIFF, COG, BigTIFF, JPEG, PNG, OME-TIFF,
                     OME-Zarr), or an array (H, W) or (H, W, C), which may be memory-mapped
        tile         side of the tiles in working pixels. Tiles larger than the model's input are
                     reduced to it, smaller ones shown with what lies around them
        overlap      of neighbouring tiles, at most half of a tile
        resolution   metres per working pixel where the scene has a CRS, else scene pixels (or units
                     of its transform); None: working pixels are the scene's
        bands        one or three of them, counted from 1; None: red, green, blue where the file
                     names them, else the first three, or the first one
        percentiles  values of each band that are shown black and white; None: (2, 98), and 8-bit
                     values as they are. value_range gives them as values, for all bands or a pair
                     for each: crops are shown as their scene only with its value_range
        nodata       a value that means no data, besides what the file says
        origin       (x, y) of the scene in a larger one, where it has no transform
        complete_cut  answer objects that a tile's border cuts again, by their clicks, in windows
                     around them, which costs an encoding for each such window
        workspace    the file that keeps finished tiles: the same call goes on after an
                     interruption. None: a temporary one
        progress     called with the tiles done so far and those of the scene; True: a bar of tqdm
        options      as those of `segment`, for each tile
        returns      the objects, on disk, joined across tiles; their ids are the same in every run

        Tiles that cannot be read are left out, with an ImageWarning and in `failures` of the
        result; with a workspace the same call tries them again. Raises ImageError for a scene that
        cannot be opened, InputError for options that do not fit it or a workspace of another job,
        and the errors of `segment`.

        >>> objects = sam.segment_large("scene.tif", overlap=256, workspace="scene.tiles")
        >>> objects.write_geopackage("scene.gpkg")
        """
        from samfast.scenes.segment_scene import SceneOptions, segment_scene

        chosen = SceneOptions(
            *(tile, overlap, resolution, bands, percentiles, value_range, nodata, origin),
            complete_cut,
        )
        return segment_scene(cast("SceneEngine", self), scene, chosen, options, workspace, progress)

    def predict_large(
        self,
        scene: SceneLike,
        prompts: Prompts | str | os.PathLike[str],
        *,
        coordinates: str = "pixels",
        tile: int = 1024,
        resolution: float | None = None,
        bands: tuple[int, ...] | None = None,
        percentiles: tuple[float, float] | None = None,
        value_range: ValueRange | None = None,
        nodata: float | None = None,
        cache: EmbeddingCache | None = None,
        progress: Progress | bool = False,
    ) -> SceneObjects:
        """The objects of prompts in a scene, each answered in a window centred on it.

        prompts      points and boxes of N objects; or a file of geometries, such as a GeoPackage:
                     points are clicks, of anything else the bounding box is the prompt
        coordinates  of points and boxes: "pixels" of the scene, or "map", its CRS
        tile         side of the windows in working pixels, at least that of the model's input.
                     Prompts too large for one are answered at half the resolution, or a quarter
        cache        keeps the embeddings of windows (`samfast.scenes.MemoryCache`, `FolderCache`,
                     or an object with their methods), so that a second question near the first one
                     costs a decode
        returns      one object for each prompt, whose ids count the prompts from 1

        All else as of `segment_large`. A single click gets the best of three masks, several clicks
        or a box the mask of the single-mask token. Prompts whose window cannot be read are left
        out and named in `failures`. Raises PromptError, with the object's number, for prompts that
        do not fit.

        >>> prompts = samfast.Prompts(boxes=[[18200, 9100, 18320, 9180]])
        >>> objects = sam.predict_large("scene.tif", prompts)
        """
        from samfast.scenes.predict_scene import predict_scene
        from samfast.scenes.segment_scene import SceneOptions

        chosen = SceneOptions(tile, 0, resolution, bands, percentiles, value_range, nodata, (0, 0))
        return predict_scene(
            cast("SceneEngine", self),
            scene,
            prompts,
            chosen,
            coordinates=coordinates,
            cache=cache,
            progress=progress,
        )

    def embed_large(
        self,
        scene: SceneLike,
        cache: EmbeddingCache,
        *,
        tile: int = 1024,
        resolution: float | None = None,
        bands: tuple[int, ...] | None = None,
        percentiles: tuple[float, float] | None = None,
        value_range: ValueRange | None = None,
        nodata: float | None = None,
        progress: Progress | bool = False,
    ) -> EmbeddedScene:
        """Embed a scene ahead of the prompts in it, so that each of them costs a decode.

        cache    keeps the embeddings; hand it to `predict_large`
        returns  how many windows were embedded, were known, and have no data

        All else as of `predict_large`, which must be called with the same values. Windows overlap
        by a half: there are about four for each tile. Prompts that are larger than a quarter of a
        window, or whose mask reaches its border, are answered in other windows still. Windows that
        cannot be read are left out, with an ImageWarning and in `failures` of the result.

        >>> sam.embed_large("scene.tif", cache=samfast.scenes.FolderCache("embeddings"))
        """
        from samfast.scenes.embed_scene import embed_scene
        from samfast.scenes.segment_scene import SceneOptions

        chosen = SceneOptions(tile, 0, resolution, bands, percentiles, value_range, nodata, (0, 0))
        return embed_scene(cast("SceneEngine", self), scene, chosen, cache, progress)
