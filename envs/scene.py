"""What a picture of a MuJoCo scene depends on, as numbers, for a renderer that is somewhere else.

A worker that simulates sends these numbers in place of pixels: where everything is that dm_control would draw, how
large and in which color, and where camera and lights are. So whatever a task changes in its model (the place of a
target, its color) is in them, and sites and tendons are drawn as well, which mujoco_warp does not do by itself.
`dreamer_mpc/rendering` makes pictures of them.
"""

import importlib.util
from typing import Any, NamedTuple

import numpy as np

from dreamer_mpc.envs.errors import EnvError

WARP = "warp"  # the render quality
PACKAGES = ("warp", "mujoco_warp")
INSTALL = "pip install -c constraints.txt -e '.[warp]'"  # what installs them, in the tested versions
VISIBLE_GROUPS = 3  # of geoms, sites and tendons, MuJoCo draws the first three
TENDON_PARTS = 32  # capsules that one tendon is drawn with; a slack one hangs in 28
DEFAULT_COLOR = np.float32([0.5, 0.5, 0.5, 1.0])  # means the color of the material, if there is one
RGB_TEXTURE = 1  # the role of a texture that is a material's color


class Layout(NamedTuple):
    """Where what is in a scene, float32 [F], of `drawn` things N and `lights` lights L."""

    drawn: int
    lights: int

    def parts(self) -> dict[str, slice]:
        """Name -> columns. `shown` is 1; a row of zeros is no scene, as before the first reset."""
        widths = {
            "shown": 1, "position": 3 * self.drawn, "rotation": 9 * self.drawn, "size": 3 * self.drawn,
            "color": 4 * self.drawn, "camera_position": 3, "camera_rotation": 9,
            "light_position": 3 * self.lights, "light_direction": 3 * self.lights,
        }  # fmt: skip
        ends = np.cumsum(list(widths.values())).tolist()
        return {name: slice(end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True)}

    @property
    def width(self) -> int:
        """F, the numbers of a scene."""
        return list(self.parts().values())[-1].stop


class Stage(NamedTuple):
    """What does not change: a model in which everything that is drawn is a geom of the world, and has one camera."""

    model: Any  # mujoco.MjModel
    layout: Layout


def check_installed() -> None:
    """EnvError unless the packages of the quality `warp` are there; they are not imported."""
    if not all(importlib.util.find_spec(name) for name in PACKAGES):
        raise EnvError(f"render_quality warp needs mujoco-warp: {INSTALL}, or use another quality")


def undrawable(model: Any, camera: int, fixed: bool) -> list[str]:
    """What warp would not draw as dm_control does, in words; empty if it draws everything. `fixed`: see `Scene`."""
    import mujoco

    kinds, sensors = mujoco.mjtGeom, model.sensor_type
    visible = model.geom_group < VISIBLE_GROUPS
    types = set(model.geom_type[visible].tolist())
    alphas = np.concatenate(
        [_colors(model, "geom")[visible, 3], _colors(model, "site")[model.site_group < VISIBLE_GROUPS, 3]]
    )
    found = {
        "a model that changes from episode to episode": not fixed,
        "a skin": model.nskin > 0 or model.nflex > 0,
        "meshes": bool(types & {kinds.mjGEOM_MESH, kinds.mjGEOM_SDF}),
        "a terrain": kinds.mjGEOM_HFIELD in types,
        "visible beams of rangefinders": bool((sensors == mujoco.mjtSensor.mjSENS_RANGEFINDER).any()),
        "transparent parts": bool(((alphas > 0) & (alphas < 1)).any()),
        "the free camera": camera < 0,
    }
    return [words for words, true in found.items() if true]


class Scene:
    """Reads the scene of a simulation, after any change of its state that dm_control has completed.

    `fixed`: the task keeps one model. EnvError where warp cannot draw what dm_control draws.
    """

    def __init__(self, name: str, model: Any, data: Any, camera: int, image_size: int, fixed: bool = True) -> None:
        if reasons := undrawable(model, camera, fixed):
            raise EnvError(
                f"render_quality warp cannot draw {name} with {', '.join(reasons)}: use full, small-shadows or fast"
            )
        self._model, self._data, self._camera = model, data, camera
        self._geoms = np.flatnonzero(model.geom_group < VISIBLE_GROUPS)
        self._sites = np.flatnonzero(model.site_group < VISIBLE_GROUPS)
        self._tendons = _Tendons(model) if _visible_tendons(model) else None
        self._image_size = image_size
        count = len(self._geoms) + len(self._sites) + (self._tendons.count if self._tendons else 0)
        self.layout = Layout(count, model.nlight)
        self._floors = np.flatnonzero(_textured_planes(model)[self._geoms])
        head = model.vis.headlight
        self._head = (np.mean(head.ambient), np.mean(head.diffuse)) if head.active else (0.0, 0.0)

    def read(self) -> np.ndarray:
        """The scene as it is now, float32 [F]."""
        model, data, at = self._model, self._data, self._camera
        position = [data.geom_xpos[self._geoms], data.site_xpos[self._sites]]
        rotation = [data.geom_xmat[self._geoms], data.site_xmat[self._sites]]
        size = [model.geom_size[self._geoms], model.site_size[self._sites]]
        color = [_colors(model, "geom")[self._geoms], _colors(model, "site")[self._sites]]
        color[0][self._floors, :3] *= self._dimmed(rotation[0][self._floors], data.cam_xmat[at])[:, None]
        if self._tendons:
            for parts, own in zip((position, rotation, size, color), self._tendons.read(data), strict=True):
                parts.append(own)
        fields = [[1.0], *position, *rotation, *size, *color, data.cam_xpos[at], data.cam_xmat[at]]
        fields += [data.light_xpos, data.light_xdir]
        return np.concatenate([np.ravel(field) for field in fields], dtype=np.float32, casting="same_kind")

    def _dimmed(self, rotation: np.ndarray, camera: np.ndarray) -> np.ndarray:
        """Factors [P] on the colors of textured planes, whose rotations are given, [P, 9].

        OpenGL cuts the light on a surface off at 1 before it multiplies by the texture, mujoco_warp after it. The
        headlight of dm_control's models reaches 1.2 where it meets a plane at a right angle.
        """
        normal, forward = rotation.reshape(-1, 3, 3)[:, :, 2], camera.reshape(3, 3)[:, 2]
        ambient, diffuse = self._head
        return 1 / np.maximum(1.0, ambient + diffuse * np.abs(normal @ forward))

    def stage(self) -> Stage:
        """What its pictures are made with besides."""
        model, spec = self._model, _empty_like(self._model)
        shrinking = _Shrinking(model, self._data, self._camera, self._image_size)
        for i in range(model.ntex):
            _add_texture(spec, model, i, shrinking)
        for i in range(model.nmat):
            _add_material(spec, model, i)
        kinds = np.concatenate([model.geom_type[self._geoms], model.site_type[self._sites]])
        materials = np.concatenate([model.geom_matid[self._geoms], model.site_matid[self._sites]])
        if self._tendons:
            kinds = np.concatenate([kinds, self._tendons.kinds])
            materials = np.concatenate([materials, np.full(self._tendons.count, -1)])
        for kind, material in zip(kinds.tolist(), materials.tolist(), strict=True):
            _add_geom(spec, kind, material)
        for i in range(model.nlight):
            _add_light(spec, model, i)
        spec.worldbody.add_camera(fovy=float(model.cam_fovy[self._camera]))
        return Stage(spec.compile(), self.layout)


class _Tendons:
    """The visible tendons as capsules: MuJoCo's own list of what is drawn has them, a slack one hanging in an arc."""

    def __init__(self, model: Any) -> None:
        import mujoco

        self._model = model
        self.count = TENDON_PARTS * len(_visible_tendons(model))
        self.kinds = np.full(self.count, int(mujoco.mjtGeom.mjGEOM_CAPSULE))
        self._drawn = mujoco.MjvScene(model, model.ngeom + model.nsite + self.count + 100)
        self._option, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()

    def read(self, data: Any) -> tuple[np.ndarray, ...]:
        """Positions [N, 3], rotations [N, 9], sizes [N, 3] and colors [N, 4]; unused ones are invisible."""
        import mujoco

        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, everything, self._drawn)
        result = tuple(np.zeros((self.count, width)) for width in (3, 9, 3, 4))
        drawn = [geom for geom in self._drawn.geoms[: self._drawn.ngeom] if geom.objtype == mujoco.mjtObj.mjOBJ_TENDON]
        for i, geom in enumerate(drawn[: self.count]):
            values = geom.pos, geom.mat.ravel(), (geom.size[0], geom.size[2], 0.0), geom.rgba
            for array, value in zip(result, values, strict=True):
                array[i] = value
        return result


class _Shrinking:
    """By how much a texture is larger than the picture shows: OpenGL then takes a smaller copy, mujoco_warp does not.

    Without it a sky of stars, 800 pixels wide, is noise in a picture of 64.
    """

    def __init__(self, model: Any, data: Any, camera: int, image_size: int) -> None:
        self._model = model
        fovy = np.deg2rad(model.cam_fovy[camera])
        self._pixels_of_sky = image_size * (np.pi / 2) / fovy  # a face of the sky is a right angle wide
        self._texels = self._texels_of_planes(data, camera, 2 * np.tan(fovy / 2) / image_size)

    def of_sky(self, width: int) -> float:
        return max(1.0, width / self._pixels_of_sky)

    def of(self, texture: int) -> float:
        """Texels for each pixel of the picture, 1 or more, where the camera is nearest to a plane with this texture."""
        return self._texels.get(texture, 1.0)

    def _texels_of_planes(self, data: Any, camera: int, pixel: float) -> dict[int, float]:
        model, found = self._model, {}
        for i in np.flatnonzero(_textured_planes(model)):
            material = model.geom_matid[i]
            texture = int(model.mat_texid[material, RGB_TEXTURE])
            normal = data.geom_xmat[i].reshape(3, 3)[:, 2]
            distance = abs(normal @ (data.cam_xpos[camera] - data.geom_xpos[i]))
            repeat, width = model.mat_texrepeat[material, 0], model.geom_size[i, 0]
            repeats = repeat / 2 if model.mat_texuniform[material] or width <= 0 else repeat / (2 * width)  # a meter
            texels = max(1.0, distance * pixel * repeats * model.tex_width[texture])
            found[texture] = min(found.get(texture, np.inf), texels)
        return found


def _visible_tendons(model: Any) -> list[int]:
    import mujoco

    spatial = model.wrap_type[model.tendon_adr] != mujoco.mjtWrap.mjWRAP_JOINT if model.ntendon else []
    return [i for i in range(model.ntendon) if spatial[i] and model.tendon_group[i] < VISIBLE_GROUPS]


def _textured_planes(model: Any) -> np.ndarray:
    """bool [ngeom]."""
    import mujoco

    textured = np.append(model.mat_texid[:, RGB_TEXTURE] >= 0, False)  # the last one: no material
    return (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE) & textured[model.geom_matid]


def _colors(model: Any, kind: str) -> np.ndarray:
    """float32 [N, 4] of all `geom`s or `site`s: their own colors, or those of their materials."""
    own, material = getattr(model, f"{kind}_rgba").copy(), getattr(model, f"{kind}_matid")
    from_material = (material >= 0) & (own == DEFAULT_COLOR).all(axis=1)
    own[from_material] = model.mat_rgba[material[from_material]]
    return own


def _empty_like(model: Any) -> Any:
    """A model to be filled, with the size, the headlight and the depth of view of `model`."""
    import mujoco

    spec = mujoco.MjSpec()
    spec.stat.extent, spec.stat.center = model.stat.extent, model.stat.center
    for name in ("ambient", "diffuse", "specular", "active"):
        setattr(spec.visual.headlight, name, getattr(model.vis.headlight, name))
    spec.visual.map.znear, spec.visual.map.zfar = model.vis.map.znear, model.vis.map.zfar
    return spec


def _add_texture(spec: Any, model: Any, i: int, shrinking: _Shrinking) -> None:
    import mujoco

    kind, channels = mujoco.mjtTexture(model.tex_type[i]), int(model.tex_nchannel[i])
    height, width, start = int(model.tex_height[i]), int(model.tex_width[i]), int(model.tex_adr[i])
    pixels = model.tex_data[start : start + height * width * channels].reshape(height, width, channels)
    if kind == mujoco.mjtTexture.mjTEXTURE_2D:
        pixels = _shrunk(pixels, shrinking.of(i))
    else:
        by = shrinking.of_sky(width)
        pixels = np.concatenate([_shrunk(face, by) for face in np.split(pixels, height // width)])
    height, width = pixels.shape[:2]
    texture = spec.add_texture(name=f"texture {i}", type=kind, width=width, height=height, nchannel=channels)
    texture.data = np.ascontiguousarray(pixels).tobytes()


def _shrunk(pixels: np.ndarray, by: float) -> np.ndarray:
    """uint8 [H, W, C], each pixel the mean of those that it replaces."""
    if by <= 1:
        return pixels
    import cv2

    size = tuple(max(1, round(n / by)) for n in (pixels.shape[1], pixels.shape[0]))
    return cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)


def _add_material(spec: Any, model: Any, i: int) -> None:
    texture = int(model.mat_texid[i, RGB_TEXTURE])
    material = spec.add_material(name=f"material {i}", rgba=model.mat_rgba[i], texrepeat=model.mat_texrepeat[i])
    material.texuniform = bool(model.mat_texuniform[i])
    for name in ("emission", "shininess"):
        setattr(material, name, getattr(model, f"mat_{name}")[i])
    # OpenGL computes highlights at the corners of a plane's few quads alone, so that a floor hardly has any.
    material.specular = 0.0 if texture >= 0 else model.mat_specular[i]
    if texture >= 0:
        textures = list(material.textures)
        textures[RGB_TEXTURE] = f"texture {texture}"
        material.textures = textures


def _add_geom(spec: Any, kind: int, material: int) -> None:
    """One that touches nothing; size, place and color are those of the scene."""
    import mujoco

    name = "" if material < 0 else f"material {material}"
    size = np.full(3, 1e-3)
    spec.worldbody.add_geom(type=mujoco.mjtGeom(kind), size=size, material=name, contype=0, conaffinity=0)


def _add_light(spec: Any, model: Any, i: int) -> None:
    import mujoco

    light = spec.worldbody.add_light(type=mujoco.mjtLightType(model.light_type[i]))
    for name in ("attenuation", "cutoff", "exponent", "ambient", "diffuse", "specular", "pos", "dir"):
        setattr(light, name, getattr(model, f"light_{name}")[i])
    light.castshadow, light.active = bool(model.light_castshadow[i]), bool(model.light_active[i])
