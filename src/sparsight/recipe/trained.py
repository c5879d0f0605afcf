"""TrainedSAEs: the SAEs of a recipe that lie trained in its run, with the controls that stand beside each."""

from sparsight.artifact import RunDir
from sparsight.errors import RunError
from sparsight.recipe.schema import Recipe
from sparsight.sae import SAEConfig, SparseAutoencoder, load_untrained

__all__ = ["TrainedSAEs"]


class TrainedSAEs:
    """Finds them by id and loads them, each time from disk."""

    def __init__(self, recipe: Recipe, run: RunDir):
        self.recipe, self.run = recipe, run

    def __contains__(self, sae: SAEConfig) -> bool:
        return (self.run.sae(sae.id) / "cfg.json").exists()

    def named(self, sae_id: str | None) -> tuple[SAEConfig, ...]:
        """The recipe's SAE with this id, or all, trained or not. Raises RunError listing what there is."""
        found = tuple(sae for sae in self.recipe.sae if sae_id in (None, sae.id))
        if found:
            return found
        known = ", ".join(sae.id for sae in self.recipe.sae)
        if sae_id in {sae.id for sae in self.recipe.trained}:
            raise RunError(f"{sae_id} is a control, measured with the SAE that it stands beside; name one of {known}.")
        raise RunError(f"{self.run.path} has no SAE {sae_id!r}; it has {known}.")

    def chosen(self, sae_id: str | None) -> tuple[SAEConfig, ...]:
        """The same. Raises RunError also when one is not trained yet."""
        found = self.named(sae_id)
        for sae in found:
            self._check("SAE", sae)
        return found

    def load(self, sae: SAEConfig, device: str) -> SparseAutoencoder:
        """One SAE."""
        return SparseAutoencoder.load(self.run.sae(sae.id)).to(device)

    def controls(self, sae: SAEConfig, device: str, *, absent_ok: bool = False) -> dict[str, SparseAutoencoder]:
        """The dictionaries that stand beside this one, in the recipe's order. Raises RunError when one is not trained yet.

        `absent_ok`: runs that were made before these controls were lack them.
        """
        trained = self.recipe.trained_controls(sae)
        found = {}
        for name in self.recipe.controls:
            if name in trained and (trained[name] in self or not absent_ok):
                found[name] = self._load_control(trained[name], device)
            elif name == "random":
                found[name] = load_untrained(self.run.sae(sae.id)).to(device)
        return found

    def second_seed(self, sae: SAEConfig, device: str) -> SparseAutoencoder | None:
        """The same SAE from another seed, where the recipe asks for one."""
        control = self.recipe.trained_controls(sae).get("seed")
        return None if control is None else self._load_control(control, device)

    def _load_control(self, control: SAEConfig, device: str) -> SparseAutoencoder:
        self._check("Control", control)
        return self.load(control, device)

    def _check(self, kind: str, sae: SAEConfig) -> None:
        if sae not in self:
            raise RunError(
                f"{kind} {sae.id} in {self.run.path} is not trained yet. Run the recipe to its end: sparsight run RECIPE."
            )
