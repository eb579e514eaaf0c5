"""ResNet-50 and mini: pictures a second by every way to run them, and whether they agree."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.common import Options, Result, interleaved, median, photographs, ratio

TITLE = "Encoding"
BATCH = 32
LEAST = 0.999  # cosine with fp32 below which vectors are other vectors
RESNET = "resnet50@random:0"


def run(options: Options, result: Result) -> None:
    import torch

    from imgsearch import images
    from imgsearch.config import load_settings
    from imgsearch.encoders import backends, load_encoder

    home = load_settings(
        imgsearch_home=options.work, imgsearch_backend="auto", imgsearch_precision="auto"
    )
    rounds = 3 if options.quick else 5
    photos = photographs(options.photos, 64 if options.quick else 400)
    bf16 = backends.cpu_has_bf16()
    precisions = ("fp32", "bf16") if bf16 else ("fp32",)
    result.note(
        f"Batches of {BATCH}, {torch.get_num_threads()} threads, {rounds} interleaved rounds; "
        "ResNet-50 with random weights."
        + ("" if bf16 else " No bf16 units here, so bf16 is left out: it is many times slower.")
    )
    for name in (RESNET, "mini"):
        start = time.perf_counter()
        ours = load_encoder(name, settings=home)
        loaded = time.perf_counter()
        ours = ours.optimized_for(17_125)
        made = time.perf_counter() - loaded
        encoders = {"imgsearch": ours}
        for precision in precisions:
            encoders[f"eager {precision}"] = load_encoder(
                name, precision=precision, backend="eager", settings=home
            )
            if name == RESNET and backends.compiler_installed() and not options.quick:
                encoders[f"compile {precision}"] = load_encoder(
                    name, precision=precision, backend="compile", settings=home
                )
        crop = ours.preprocessing.crop
        prepared = np.stack(
            [ours.preprocess(images.decode(p, draft=ours.preprocessing.draft)) for p in photos]
        )
        batch = np.resize(prepared, (BATCH, crop, crop, 3))
        features = {way: encoder.features for way, encoder in encoders.items()}
        features["plain torch fp32"] = plain(name)
        if backends.openvino_installed():
            for precision in precisions:
                features[f"plain OpenVINO {precision}"] = plain_openvino(name, home, precision)
        ways = {way: (lambda f=f, batch=batch: f(batch)) for way, f in features.items()}
        times = interleaved(ways, rounds)
        for way, seconds in times.items():
            result.add(f"{name}, {way}", BATCH / median(seconds), "images/s")
        # A way that gives other vectors is no way to do the same thing.
        wanted = encoders["eager fp32"].features(prepared)
        agreed = {
            way: agreement(features[way], prepared, wanted)
            for way in features if way == "imgsearch" or not way.endswith("fp32")
        }  # fmt: skip
        for way, least in agreed.items():
            if way != "imgsearch":
                result.add(f"{name}, {way}: least cosine with fp32", f"{least:.6f}")
        rivals = [way for way in ways if way != "imgsearch" and agreed.get(way, 1) >= LEAST]
        best = min(rivals, key=lambda way: median(times[way]))
        result.add(
            f"{name}: imgsearch ({ours.backend}, {ours.precision}) to the best that gives the "
            f"same vectors ({best})",
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
        result.add(
            f"{name}: least cosine with fp32, {len(photos)} photographs",
            f"{agreed['imgsearch']:.6f}",
        )
        result.rows[-1].goal, result.rows[-1].met = f"≥ {LEAST}", agreed["imgsearch"] >= LEAST


def agreement(features, prepared: np.ndarray, wanted: np.ndarray) -> float:
    """Smallest cosine of what a way makes of the photographs with what fp32 does."""
    from imgsearch.encoders import backends

    made = [features(prepared[i : i + BATCH]) for i in range(0, len(prepared), BATCH)]
    return backends.agreement(np.concatenate(made), wanted)


def plain(name: str):
    """As most programs do it: fp32, eager, channels first, batch norms as they are.

    From uint8 (n, crop, crop, 3) to float32 (n, dim).
    """
    import torch

    from imgsearch.encoders import Preprocessing, mini, resnet, weights

    if name == "mini":
        network, preprocessing = mini.build(), mini.PREPROCESSING
    else:
        network = resnet.resnet("resnet50")
        network.load_state_dict(weights.random_state(network, 0), assign=True, strict=False)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.num_batches_tracked = torch.tensor(0)
        preprocessing = Preprocessing()
    network.eval()
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (preprocessing.mean, preprocessing.std))

    def way(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous().float() / 255
            return network((x - mean) / std).numpy()

    return way


def plain_openvino(name: str, home, precision: str):
    """OpenVINO as its documentation says: one request, the hint LATENCY."""
    import openvino as ov

    from imgsearch.encoders import backends, load_encoder

    encoder = load_encoder(name, backend="openvino", settings=home)
    kept = backends.openvino_cache(home.imgsearch_home, encoder.fingerprint)
    model = backends.openvino_model(None, encoder.preprocessing, kept)
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }
    request = ov.Core().compile_model(model, "CPU", hints).create_infer_request()
    return lambda batch: request.infer([batch])[0].copy()
