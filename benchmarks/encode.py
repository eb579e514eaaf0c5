"""ResNet-50 and mini: pictures a second by every way to run them, and whether they agree."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.common import Options, Result, interleaved, median, photographs, ratio

TITLE = "Encoding"
BATCH = 32
RESNET = "resnet50@random:0"


def run(options: Options, result: Result) -> None:
    import torch

    from imgsearch import images, runners
    from imgsearch.config import settings
    from imgsearch.encoder import load_encoder

    home = settings(
        imgsearch_home=options.work, imgsearch_backend="auto", imgsearch_precision="auto"
    )
    rounds = 3 if options.quick else 5
    photos = photographs(options.photos, 64 if options.quick else 400)
    result.note(
        f"Batches of {BATCH}, {torch.get_num_threads()} threads, {rounds} interleaved rounds; "
        f"ResNet-50 with random weights. "
        + (
            ""
            if runners.cpu_has_bf16()
            else "No bf16 units here, so bf16 is left out: it is many times slower."
        )
    )
    for name in (RESNET, "mini"):
        start = time.perf_counter()
        ours = load_encoder(name, settings=home)
        loaded = time.perf_counter()
        ours.expect(17_125)
        made = time.perf_counter() - loaded
        encoders = {"imgsearch": ours}
        bf16 = runners.cpu_has_bf16()
        for precision in ("fp32", "bf16") if bf16 else ("fp32",):
            encoders[f"eager {precision}"] = load_encoder(
                name, precision=precision, backend="eager", settings=home
            )
            if name == RESNET and runners.compiler_is_there() and not options.quick:
                encoders[f"compile {precision}"] = load_encoder(
                    name, precision=precision, backend="compile", settings=home
                )
        if runners.openvino_is_there():
            encoders["OpenVINO"] = load_encoder(name, backend="openvino", settings=home)
        crop = ours.preprocessing.crop
        prepared = np.stack(
            [ours.prepare(images.decode(p, draft=ours.preprocessing.resize)) for p in photos]
        )
        batch = np.resize(prepared, (BATCH, crop, crop, 3))
        ways = {key: (lambda e=e, batch=batch: e.features(batch)) for key, e in encoders.items()}
        ways["plain torch fp32"] = plain(name, home, batch)
        if runners.openvino_is_there():
            ways["plain OpenVINO"] = plain_openvino(name, home, batch)
        times = interleaved(ways, rounds)
        for way, seconds in times.items():
            result.add(f"{name}, {way}", BATCH / median(seconds), "images/s")
        best = min((w for w in ways if w != "imgsearch"), key=lambda w: median(times[w]))
        result.add(
            f"{name}: imgsearch ({ours.backend}, {ours.precision}) to the best ({best})",
            ratio(times, best, "imgsearch"), "×", least=0.95,
        )  # fmt: skip
        result.add(
            f"{name}: imgsearch to plain torch fp32",
            ratio(times, "plain torch fp32", "imgsearch"), "×", least=1,
        )  # fmt: skip
        single = {
            k: (lambda e=e, one=batch[:1]: e.features(one))
            for k, e in encoders.items()
            if k in ("imgsearch", "eager fp32")
        }
        for way, seconds in interleaved(single, rounds).items():
            result.add(f"{name}, one picture, {way}", 1000 * median(seconds), "ms")
        result.add(f"{name}: loading", loaded - start, "s")
        result.add(f"{name}: making what a long job runs on", made, "s", note="once in a home")
        wanted = encoders["eager fp32"].encode_prepared(prepared)
        least = float((ours.encode_prepared(prepared) * wanted).sum(axis=1).min())
        result.add(f"{name}: least cosine with fp32, {len(photos)} photographs", f"{least:.6f}")
        result.rows[-1].goal, result.rows[-1].met = "≥ 0.999", least >= 0.999


def plain(name: str, home, batch: np.ndarray):
    """As most programs do it: fp32, eager, channels first, batch norms as they are."""
    import torch

    from imgsearch import backbones, mini

    if name == "mini":
        network, mean, std = mini.build(), mini.SPEC.mean, mini.SPEC.std
    else:
        network = backbones.resnet("resnet50")
        network.load_state_dict(backbones.random_state(network, 0), assign=True, strict=False)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.num_batches_tracked = torch.tensor(0)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network.eval()
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (mean, std))

    def way() -> None:
        with torch.inference_mode():
            x = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous().float() / 255
            network((x - mean) / std)

    return way


def plain_openvino(name: str, home, batch: np.ndarray):
    """OpenVINO as its documentation says: one request, the hint LATENCY."""
    import openvino as ov

    from imgsearch import runners
    from imgsearch.encoder import load_encoder

    encoder = load_encoder(name, backend="openvino", settings=home)
    kept = runners.openvino_cache(home.imgsearch_home, encoder.fingerprint)
    model = runners.openvino_model(None, (), (), crop=0, cache=kept)
    request = ov.Core().compile_model(
        model, "CPU", {"PERFORMANCE_HINT": "LATENCY"}
    ).create_infer_request()  # fmt: skip
    return lambda: request.infer([batch])
