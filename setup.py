"""Ships the recipes of `configs/` in the wheel as `neuroflamingo/configs`; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RECIPES = sorted(Path("configs").rglob("*.yaml"))


class BuildWithRecipes(build_py):
    """`build_py`, then the recipes; an editable install leaves them where they are."""

    def _targets(self):
        return [Path(self.build_lib, "neuroflamingo", recipe) for recipe in RECIPES]

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for recipe, target in zip(RECIPES, self._targets(), strict=True):
            self.mkpath(str(target.parent))
            self.copy_file(str(recipe), str(target))

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + [str(target) for target in self._targets()]


setup(cmdclass={"build_py": BuildWithRecipes})
