"""The documentation site: `make docs` builds it into build/docs, warnings being errors."""

import importlib.metadata
import os
import sys
import typing
from pathlib import Path

typing.GENERATING_DOCUMENTATION = "dynasac"  # jaxtyping then names its types as they are written

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# the notebooks run in processes of their own, which must find the same package
source = str(HERE.parent / "src")
sys.path.insert(0, source)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))

# and keep what they compile for the next time
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE.parent / "build" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

project = "dynasac"
copyright = "the authors of dynasac"
release = version = importlib.metadata.version("dynasac")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "myst_nb",
    "from_program",
    "offline_math",
]
exclude_patterns = ["_build"]
default_role = "py:obj"
smartquotes = False  # which would make one dash of the two of an option
nitpicky = False  # docstrings name things of other packages, whose pages are not linked
suppress_warnings = ["mystnb.unknown_mime_type"]

myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 240
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Arguments", "params_style")]
napoleon_use_rtype = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "dynasac"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
math_renderer = html_math_renderer = "mathml"
copybutton_prompt_text = "$ "
