from .find import find_config as find_config
from .find import list_configs as list_configs
from .read import load_recipe as load_recipe
from .schema import LoraSettings as LoraSettings
from .schema import OptimSettings as OptimSettings
from .schema import Recipe as Recipe
from .schema import TrainedSettings as TrainedSettings
