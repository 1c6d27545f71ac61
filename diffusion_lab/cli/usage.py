"""The text of --help: the groups and options found under conf/."""

from __future__ import annotations

import textwrap

from diffusion_lab.cli.compose import defaults, groups
from diffusion_lab.studies.definition import listed

USAGE = """\
diffusion_lab: measure how a diffusion model learns a subject from a few photos, and when to stop.

  python -m diffusion_lab [group=option ...] [key=value ...] [flags]

Groups and their options (* marks the default):
{groups}

Keys: every value of the configuration, group.key=value. See them all with --cfg job.

Flags:
  --help         this page
  --cfg job      print the configuration and stop
  --dry-run      check everything, print the plan (images, steps, time, memory) and stop
  -m             sweep: one job for each combination of values, key=a,b
  --sweep        a study defined in sweeps/, see Studies; all: every one that needs no photos
  --quick        with --sweep: a first look with few subjects, prompts and steps, in minutes
  --config-dir   a folder with options of your own, conf/<group>/<option>.yaml
  --hydra-help   more flags and settings

Studies:
{studies}

Examples:
  python -m diffusion_lab                                     a subject of the miniature, in minutes on a CPU
  python -m diffusion_lab data.subject=ben data.n_images=8
  python -m diffusion_lab data=folder data.folder=my_dog data.class_noun=dog
  python -m diffusion_lab experiment=debug                    a complete run in a minute
  python -m diffusion_lab -m data.subject=anna,ben data.n_images=4,14
  python -m diffusion_lab -m hydra/launcher=joblib hydra.launcher.n_jobs=2 seed=0,1,2
  python -m diffusion_lab --sweep counts --quick
  python -m diffusion_lab --sweep methods seed=0
  python -m diffusion_lab job=generate job.artefact=outputs/RUN/artefact prompts.n=10
  python -m diffusion_lab job=score images=pictures data=folder data.folder=my_dog data.class_noun=dog
  python -m diffusion_lab job=study job.runs=outputs/studies
"""


def usage() -> str:
    """The text of --help."""
    taken, lines = defaults(), []
    for group, options in groups().items():
        lines.append(f"  {group}")
        for option, description in options.items():
            star = "*" if taken.get(group) == option else " "
            lines += _entry(f"   {star} {option:<12} ", description)
    studies = [line for name, question in listed().items() for line in _entry(f"  {name:<15} ", question)]
    return USAGE.format(groups="\n".join(lines), studies="\n".join(studies))


def _entry(head: str, text: str) -> list[str]:
    return textwrap.wrap(text, 108, initial_indent=head, subsequent_indent=" " * len(head))
