"""k-sparse probes: how much of a concept sits in k units of a representation.

    association_j = |mean(x_j | 1) - mean(x_j | 0)| / std(x_j), over the training part      the k largest are chosen
    p(1 | x) = sigmoid(w . (x_S - mean_S) / std_S + b)                                      S: those k units; L2-regularised, C by cross-validation

Units are an SAE's latents, raw dimensions of the activation or principal components. Divided by its standard deviation, the difference of
class means is (but for a factor that all units share) the correlation with the label, so that units of any scale compete as equals. Choice,
scaling, C and weights come of the training part alone; test labels are seen by `auc` and `balanced_accuracy` only. C is chosen by log loss,
since AUC at k = 1 does not depend on it, and classes are weighted to be equal, so that 1/2 is the threshold.

Source: Gurnee et al. 2023, arXiv:2305.01610 (sparse probing, choice by class means); Kantamneni et al. 2025, arXiv:2502.16681 (the sets; dense
bars beside SAEs). Trade-offs: the k units are chosen one by one and not jointly, so two that say the same may both be chosen; and a latent that
is 0 on most prompts ranks those no further, which costs AUC at k = 1 that a dense unit does not pay: balanced accuracy stands beside.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from sparsight.errors import MetricError

__all__ = [
    "ProbeScore",
    "ProbingConfig",
    "SparseProbe",
    "association",
    "one_thread",
    "require_sklearn",
    "stratified_split",
    "train_probe",
]


@dataclass(frozen=True, kw_only=True)
class ProbingConfig:
    """Settings of `probe`."""

    ks: tuple[int, ...] = (1, 5, 16)
    """How many units a probe may use."""
    max_prompts: int = 400
    """Prompts taken of each set, half of each class, where it has as many."""
    max_tokens: int = 128
    """Tokens kept of a prompt, at its end: the last one is probed."""
    test_fraction: float = 0.3
    """Share of each class that is tested on and nothing else."""
    n_folds: int = 3
    """Folds of the training part in which C is chosen."""
    inverse_penalties: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    """The Cs that are tried: scikit-learn's, the inverse of the L2 penalty on weights of standardised units."""
    min_per_class: int = 30
    """A set with fewer prompts of a class is skipped and listed."""
    n_resamples: int = 1000
    """Resampled families of sets behind each 95 % interval."""
    seed: int = 0
    """Seed of the prompts drawn, the split, the folds, the shuffled labels and the resampling."""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or list(self.ks) != sorted(set(self.ks)):
            raise MetricError(f"probing: ks = {self.ks}; expected different numbers from 1 up, ascending.")
        if not 0 < self.test_fraction < 1:
            raise MetricError(f"probing: test_fraction = {self.test_fraction}; expected a share between 0 and 1.")
        if not self.inverse_penalties or min(self.inverse_penalties) <= 0:
            raise MetricError(f"probing: inverse_penalties = {self.inverse_penalties}; expected numbers above 0.")
        least = {"max_prompts": 20, "max_tokens": 1, "n_folds": 2, "min_per_class": 10, "n_resamples": 100, "seed": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise MetricError(f"probing: {name} = {getattr(self, name)}; expected at least {lowest}.")
        in_training = self.min_per_class - round(self.test_fraction * self.min_per_class)
        if not self.n_folds <= in_training < self.min_per_class:
            raise MetricError(
                f"probing: of min_per_class = {self.min_per_class} prompts, test_fraction = {self.test_fraction} leaves "
                f"{in_training} to train on; expected at least n_folds = {self.n_folds}, and one to test on."
            )


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """How well one probe does on the test part."""

    auc: float
    """Area under the ROC curve."""
    balanced_accuracy: float
    """Mean of the two classes' accuracies at probability 1/2."""


@dataclass(frozen=True, kw_only=True)
class SparseProbe:
    """A trained probe; nothing in it has seen a test label."""

    units: Int[np.ndarray, " k"]
    """The units it reads, the most associated first."""
    mean: Float[np.ndarray, " k"]
    scale: Float[np.ndarray, " k"]
    weights: Float[np.ndarray, " k"]
    """Of standardised units."""
    bias: float
    inverse_penalty: float
    """The C that was chosen."""

    def logits(self, x: Float[np.ndarray, "n F"]) -> Float[np.ndarray, " n"]:
        """Log odds of the positive class."""
        return (x[:, self.units] - self.mean) / self.scale @ self.weights + self.bias

    def score(self, x: Float[np.ndarray, "n F"], labels: Int[np.ndarray, " n"]) -> ProbeScore:
        """Measure on prompts that it was not trained on."""
        from sklearn.metrics import balanced_accuracy_score, roc_auc_score

        logits = self.logits(x)
        return ProbeScore(
            auc=float(roc_auc_score(labels, logits)),
            balanced_accuracy=float(balanced_accuracy_score(labels, logits > 0)),
        )


def require_sklearn() -> None:
    """Raises MetricError with the install line when scikit-learn is missing."""
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError:
        raise MetricError("Probing needs scikit-learn. Run: pip install scikit-learn") from None


@contextmanager
def one_thread() -> Iterator[None]:
    """Holds scikit-learn's products to one thread: on matrices as small as these a second one only spins."""
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    with threadpool_limits(limits=1):
        yield


def stratified_split(
    labels: Int[np.ndarray, " n"], *, test_fraction: float, seed: int
) -> tuple[Int[np.ndarray, " n_train"], Int[np.ndarray, " n_test"]]:
    """(train, test) row numbers, ascending: the same share of each class, rounded, drawn by seed."""
    rng = np.random.default_rng(seed)
    test = []
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        test.append(rows[: round(test_fraction * len(rows))])
    chosen = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def association(x: Float[np.ndarray, "n F"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " F"]:
    """|difference of class means| / standard deviation of each unit; 0 for one that does not vary."""
    difference = np.abs(x[labels == 1].mean(0, dtype=np.float64) - x[labels == 0].mean(0, dtype=np.float64))
    spread = x.std(0, dtype=np.float64)
    varies = spread > 1e-6 * np.abs(x).max(0, initial=0.0)  # float32 sums of a constant do not come out as 0
    return np.where(varies, difference / np.where(varies, spread, 1.0), 0.0)


def train_probe(
    x: Float[np.ndarray, "n F"], labels: Int[np.ndarray, " n"], k: int | None, config: ProbingConfig
) -> SparseProbe:
    """A probe on the k units most associated with the label, or on all with None. `x`, `labels`: the training part.

    Ties are resolved to the lower unit number. Raises MetricError when a class has fewer rows than there are folds.
    """
    if (fewest := min(int((labels == label).sum()) for label in (0, 1))) < config.n_folds:
        raise MetricError(f"A class has {fewest} training rows; {config.n_folds} folds need as many.")
    units = np.arange(x.shape[1])
    if k is not None:
        units = np.argsort(-association(x, labels), kind="stable")[:k]
    chosen = x[:, units].astype(np.float64)
    mean, scale = chosen.mean(0), chosen.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    standardised = (chosen - mean) / scale
    inverse_penalty = _choose_penalty(standardised, labels, config)
    model = _fit(standardised, labels, inverse_penalty)
    return SparseProbe(
        units=units,
        mean=mean,
        scale=scale,
        weights=model.coef_[0],
        bias=float(model.intercept_[0]),
        inverse_penalty=inverse_penalty,
    )


def _choose_penalty(x: np.ndarray, labels: np.ndarray, config: ProbingConfig) -> float:
    """The C with the least log loss over the folds, classes weighing the same; the strongest penalty among equals."""
    from sklearn.model_selection import StratifiedKFold

    losses = np.zeros(len(config.inverse_penalties))
    folds = StratifiedKFold(config.n_folds, shuffle=True, random_state=config.seed)
    for train, test in folds.split(x, labels):
        for index, inverse_penalty in enumerate(sorted(config.inverse_penalties)):
            logits = _fit(x[train], labels[train], inverse_penalty).decision_function(x[test])
            loss = np.logaddexp(0, np.where(labels[test] == 1, -logits, logits))
            losses[index] += sum(loss[labels[test] == label].mean() for label in (0, 1))
    return sorted(config.inverse_penalties)[int(np.argmin(losses))]


def _fit(x: np.ndarray, labels: np.ndarray, inverse_penalty: float):
    import sklearn
    from sklearn.linear_model import LogisticRegression

    # Half of a fit of this size is the checking of its arguments.
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        return LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=2000).fit(x, labels)
