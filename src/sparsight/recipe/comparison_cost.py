"""What a comparison costs in FLOPs and bytes, from arithmetic alone, as recipe/cost.py does for a study. R: models, H: closure.heldout_tokens.

    null           forward and backward through frozen weights, 2 forward passes of the whole model a token; where it is to be made
    capture        a forward pass of the cut model for each model and token
    where          whole models on H: 2 passes a fine-tune, 2, and 2 from each layer and the hook point on; CKA's products
    dense          2 passes a fine-tune on H; a covariance of the difference on the train rows
    dictionaries   every SAE at once, then the warm starts; a crosscoder's width is both models'
    labels         each dictionary's latents on the held-out rows; cosines and products of latents for every pair of dictionaries that is matched;
                   latent scaling of the seeds, 4 dot products of an active latent, 64 d bytes each, and of the crosscoders, 8; an L1's as matrices
    closure        for the difference and the crosscoder: attribution, 2 passes and 4 of 2 with gradients; on H 2 passes, and from the hook point
                   on 6 bars, top, bottom and 3 random sets of each size, 8 more by energy; 3 dense bars with the first; for tuned.0 the
                   latents called changed, as by energy
    grounding      each model writes its texts, a pass over the weights a token of a batch, and base and tuned read all of them
    telling        the same of the tuned model's texts again, without the latents that tell and without each control; nothing where none tells
    models         an adapter's weights are its base's; any other fine-tune has a memory of its own. They stay to the end
    graph          what a backward pass keeps: 8 d and 4 of the widest inner activation a token and layer
    labels' memory latents 12 bytes each; four F x F tables of a pair; scaling, 9 numbers in float64 a document and latent, three times, a document
                   being taken to be context_tokens long
    store          a token: R * d * bytes, 20 bytes of ids, 4 of text

Sizes of sets that turn out to be too many for the latents alive are left out when it is run; they are counted here. Left out: checking and
mixing texts, the suffix array of the fine-tuning text, resampling, tables and page.
"""

from dataclasses import dataclass
from functools import cached_property

from sparsight.activations import paired_hook_points
from sparsight.activations.paired import derived_width
from sparsight.lm import FinetuneConfig, is_adapter
from sparsight.lm.geometry import ModelGeometry
from sparsight.recipe.comparison import Comparison
from sparsight.recipe.cost import (
    PADDING,
    PROGRAM_BYTES,
    Cost,
    Stages,
    Work,
    add_products,
    forward_bytes,
    logit_bytes,
    model_bytes,
    token_bytes,
    window_bytes,
)
from sparsight.recipe.sae_cost import DTYPE_BYTES, SAECost, sae_cost
from sparsight.sae import SAEConfig

__all__ = ["comparison_cost"]

_WRITTEN_AT_ONCE = 256
_RANDOM_SETS, _BARS, _NAMED_SET, _DENSE_BARS, _GRADIENT_STEPS = 3, 6, 8, 3, 4
_SCALING_BYTES = 9 * 8 * 3
_DOTS, _DOT_BYTES = (
    8,
    64,
)  # of an active latent with each model's error and reconstruction along two decoders; moved a number, measured
_PAIR_TABLES = 4
_STEP_CALLS = 3.5e-3  # seconds: a step of 512 rows and 1,152 latents takes 7.7 ms, of which FLOPs and bytes explain 4


def comparison_cost(recipe: Comparison, geometry: ModelGeometry, kind: str) -> Cost:
    """The cost of a comparison on a `kind` of device, cuda or cpu; `geometry`: the base's, cut at the hook point."""
    return _Costing(recipe, geometry, kind).cost()


@dataclass(frozen=True)
class _Costing:
    recipe: Comparison
    geometry: ModelGeometry
    kind: str

    def cost(self) -> Cost:
        recipe, saes = self.recipe, self.saes
        host = {}
        memory = self._memory()
        if self.kind == "cuda":
            host = {"labels": memory.pop("labels"), "models": self._loading()}
        return Cost(
            saes=saes,
            forward_flops=len(recipe.roles) * self.geometry.forward_flops(recipe.text.context_tokens),
            work=self._work(),
            disk={
                "activations": self._token_bytes * (recipe.activations.n_tokens + recipe.activations.heldout_tokens),
                "saes": sum(4.0 * sae.parameters for sae in saes),
                "checkpoints": sum(2 * 12.0 * sae.parameters for sae in saes),
            },
            device=memory,
            host=host,
        )

    @property
    def saes(self) -> tuple[SAECost, ...]:
        return tuple(
            sae_cost(sae, width, width, batch_tokens=self.recipe.train.batch_tokens, kind=self.kind)
            for sae in self.recipe.trained
            for width in [self._width(sae)]
        )

    @cached_property
    def _null_training(self) -> FinetuneConfig:
        return self.recipe.null_finetune()[0]

    @property
    def _d(self) -> int:
        return self.geometry.widths[self.recipe.hook_point]

    @property
    def _widths(self) -> dict[str, int]:
        """Of what is captured."""
        return dict.fromkeys(paired_hook_points([self.recipe.hook_point], self.recipe.roles), self._d)

    def _width(self, sae: SAEConfig) -> int:
        width = derived_width(sae.hook_point, self._widths)
        assert width is not None
        return width

    @property
    def _token_bytes(self) -> float:
        return token_bytes(self.recipe.activations, self._widths.values())

    @property
    def _whole(self) -> float:
        """FLOPs of a forward pass of a whole model, a token."""
        return self.geometry.forward_flops(self.recipe.text.context_tokens, whole=True) * PADDING

    def _from(self, hook_point: str) -> float:
        """The same of one that begins at the hook point."""
        return self.geometry.forward_flops(self.recipe.text.context_tokens, whole=True, given=hook_point) * PADDING

    def _work(self) -> dict[str, Work]:
        recipe, dtype = self.recipe, self.recipe.base.dtype
        capture, options, n_fine_tunes = recipe.activations, recipe.closure, len(recipe.roles) - 1
        found: dict[str, Work] = {}

        def stage(name: str, forward: float, what: str = "hooked") -> Work:
            found[name] = Work()
            found[name].compute(what, dtype, forward)
            return found[name]

        if recipe.make_null:
            trained = self._null_training.steps * self._null_training.batch_tokens
            stage("null", 2 * trained * self._whole, "tuned")
        n_captured = capture.n_tokens + capture.heldout_tokens
        cut = self.geometry.forward_flops(recipe.text.context_tokens) * PADDING
        stage("capture", n_captured * len(recipe.roles) * cut, "forward").bytes_written = n_captured * self._token_bytes
        points = options.layers_of(self.geometry.n_layers, recipe.hook_point)
        passes = (2 * n_fine_tunes + 2) * self._whole + sum(2 * self._from(name) for name in points)
        alike = n_fine_tunes * len(points) * 4.0 * options.forward_tokens * self._d  # CKA's products of rows with rows
        where = stage("where", options.heldout_tokens * passes)
        where.compute("forward", "float32", options.heldout_tokens * alike)
        dense = stage("dense", options.heldout_tokens * 2 * n_fine_tunes * self._whole)
        dense.compute("forward", "float32", 2.0 * n_fine_tunes * capture.n_tokens * self._d**2)
        if recipe.trained:
            found["dictionaries"] = self._training()
        self._labels(stage("labels", 0.0))
        self._closure(stage("closure", self._closure_flops()))
        if recipe.fine_tuning is not None:
            self._grounding(stage("grounding", 0.0), len(recipe.roles))
            if recipe.trained:
                self._grounding(stage("telling", 0.0), 3 + recipe.writing.controls)
        return found

    def _training(self) -> Work:
        capture, train, work = self.recipe.activations, self.recipe.train, Work()
        for sae in self.saes:
            rows = capture.n_tokens * train.epochs
            work.compute(sae.form, sae.precision, sae.flops_done * rows)
            work.bytes_moved += sae.bytes_moved * (rows // train.batch_tokens)
            work.call_seconds += (rows // train.batch_tokens) * _STEP_CALLS if self.kind == "cpu" else 0.0
            work.compute("forward", "float32", sae.flops_inference * capture.heldout_tokens)
        return work

    def _labels(self, work: Work) -> None:
        """Of 2 given SAEs one pair is matched and one is scaled. All of it runs on the CPU."""
        chosen, n_tokens = self.recipe.dictionaries, self.recipe.activations.heldout_tokens
        n, n_null = chosen.seeds, chosen.null_seeds if len(self.recipe.roles) == 3 else 0
        n_read, n_pairs = 2 * n + n_null, n * (2 * n - 1) + n_null * n + n_null * (n_null - 1) // 2
        n_scaled, n_warm = n_read, len(self.recipe.roles)
        if self.recipe.saes:
            n_read, n_pairs, n_scaled, n_warm = 2, 1, 1, 0
        encode = 2.0 * self._d * chosen.n_latents
        work.compute("forward", "float32", n_tokens * encode * (n_read + n_warm))
        work.compute("forward", "float32", n_pairs * encode * chosen.n_latents)
        for _ in range(n_pairs):
            add_products(work, chosen.k, chosen.n_latents, n_tokens, "cpu")
        if self._has_crosscoders:
            n_scaled += 2  # of both models' directions
            work.compute(
                "forward", "float32", n_tokens * encode * (6 + _DOTS)
            )  # encode both; the L1's latents are many
        work.bytes_moved += n_scaled * n_tokens * chosen.k * float(_DOTS / 2 * _DOT_BYTES * self._d)

    @property
    def _has_crosscoders(self) -> bool:
        return self.recipe.dictionaries.crosscoders and not self.recipe.saes

    @property
    def _n_codes(self) -> int:
        return 2 if self._has_crosscoders else 1

    def _closure_flops(self) -> float:
        """Of the models: whole passes, and those that begin with what is put in."""
        options, upper = self.recipe.closure, self._from(self.recipe.hook_point)
        attribution = options.attributed_tokens * 2 * (self._whole + _GRADIENT_STEPS * upper)
        sets = (2 + _RANDOM_SETS) * len(options.sizes)
        curve, named = (
            options.heldout_tokens * (2 * self._whole + (_BARS + more + _NAMED_SET) * upper) for more in (sets, 0)
        )
        changed = attribution + named if self.recipe.trained else 0
        return self._n_codes * (attribution + curve) + changed + options.heldout_tokens * _DENSE_BARS * upper

    def _closure(self, work: Work) -> None:
        """Energy of every latent on the train rows, for each code; the difference's components are at hand from the dense bars."""
        n_tokens = self.recipe.activations.n_tokens
        codes = 3 if self._n_codes == 2 else 1  # in widths: a crosscoder reads both models
        work.compute("forward", "float32", 2.0 * codes * n_tokens * self._d * self.recipe.dictionaries.n_latents)

    def _grounding(self, work: Work, n_texts: int) -> None:
        """`n_texts`: for each prompt."""
        writing = self.recipe.writing
        tokens = writing.prompts * (writing.prompt_tokens + writing.max_new_tokens)
        work.compute("hooked", self.recipe.base.dtype, 3 * n_texts * tokens * self._whole)
        batches = -(-writing.prompts // _WRITTEN_AT_ONCE)
        weights = model_bytes(self.recipe.base, self.geometry.parameters)
        work.bytes_moved += n_texts * batches * writing.max_new_tokens * weights

    @property
    def _models(self) -> float:
        """Bytes of all models at once."""
        apart = [name for name in (self.recipe.tuned, self.recipe.null) if name and not is_adapter(name)]
        return (1 + len(apart)) * model_bytes(self.recipe.base, self.geometry.parameters)

    def _loading(self) -> dict[str, float]:
        whole = model_bytes(self.recipe.base, self.geometry.parameters)
        return {"program": PROGRAM_BYTES, "a whole model while loading": whole}

    def _graph(self, n_tokens: int, n_layers: int) -> float:
        numbers = n_layers * (8 * self.geometry.d_model + 4 * self.geometry.widest)
        return float(n_tokens * numbers * DTYPE_BYTES[self.recipe.base.dtype])

    def _memory(self) -> Stages:
        recipe, geometry, base = self.recipe, self.geometry, self.recipe.base
        options, capture, n_latents = recipe.closure, recipe.activations, recipe.dictionaries.n_latents
        models, widths = {"models": self._models}, list(self._widths.values())
        context, logits = recipe.text.context_tokens, logit_bytes(base, geometry.vocab_size, options.forward_tokens)
        stages: Stages = {}
        if recipe.make_null:
            whole, made = model_bytes(base, geometry.parameters), self._null_training
            graph = self._graph(made.batch_tokens, geometry.n_layers)
            logits_there = logit_bytes(base, geometry.vocab_size, made.batch_tokens)
            stages["null"] = {"whole model": whole, "graph": graph, "logits": logits_there}
        forward = forward_bytes(base, geometry, recipe.text.batch_tokens, len(widths))
        stages["capture"] = models | {"one forward": forward}
        if self.kind == "cpu":
            stages["capture"]["a window"] = window_bytes(capture, context, widths, base.dtype)
        passing = forward_bytes(base, geometry, options.forward_tokens, 2 * (options.layers + 1))
        stages["where"] = models | {"one forward": passing, "logits": logits}
        if recipe.trained:
            stages["dictionaries"] = models | self._training_memory(widths)
        stages["labels"] = models | self._labels_memory()
        upper = self._graph(options.forward_tokens // 2, geometry.n_layers - geometry.n_layers_read)
        latents = 3 * 4.0 * options.forward_tokens * n_latents
        stages["closure"] = models | {"logits": logits, "graph": upper, "latents": latents}
        if self.kind == "cpu":
            for parts in stages.values():
                parts["program"] = PROGRAM_BYTES
        else:
            stages["labels"] = {"program": PROGRAM_BYTES} | self._labels_memory()
        return stages

    def _training_memory(self, widths: list[int]) -> dict[str, float]:
        capture, saes = self.recipe.activations, self.saes
        parts = {"SAEs": sum(sae.state_bytes for sae in saes), "one step": max(sae.step_bytes for sae in saes)}
        if self.kind == "cpu":
            dtype = "float32" if capture.dtype == "int8" else capture.dtype
            parts["two windows"] = 2 * window_bytes(capture, self.recipe.text.context_tokens, widths, dtype)
        return parts

    def _labels_memory(self) -> dict[str, float]:
        recipe, n_latents = self.recipe, self.recipe.dictionaries.n_latents
        n_tokens = recipe.activations.heldout_tokens
        n = 2 if recipe.saes else sum(len(recipe.seeds_of(role)) for role in recipe.roles)
        documents = -(-n_tokens // recipe.text.context_tokens)
        return {
            "SAEs": sum(4.0 * sae.parameters for sae in self.saes),
            "active latents": 12.0 * n * n_tokens * recipe.dictionaries.k,
            "a pair's tables": _PAIR_TABLES * 4.0 * n_latents**2,
            "latent scaling": float(_SCALING_BYTES * documents * n_latents),
        }
