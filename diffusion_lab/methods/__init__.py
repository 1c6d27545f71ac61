"""Fine-tuning methods, one file each. A method's dataclass is also its configuration."""

from diffusion_lab.methods.dreambooth import DreamBooth
from diffusion_lab.methods.hypernetwork import Hypernetwork
from diffusion_lab.methods.lora import Lora
from diffusion_lab.methods.pivotal import Pivotal
from diffusion_lab.methods.textual_inversion import TextualInversion

METHODS: dict[str, type] = {  # a new method needs its file, a line here, and conf/method/<name>.yaml
    "lora": Lora,
    "dreambooth": DreamBooth,
    "textual_inversion": TextualInversion,
    "pivotal": Pivotal,
    "hypernetwork": Hypernetwork,
}
