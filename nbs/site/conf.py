"Sphinx's settings for the book's site; build.py lays out the pages and calls Sphinx"
import importlib.util
import sys
from configparser import ConfigParser
from pathlib import Path

SITE = Path(__file__).resolve().parent
sys.path.insert(0, str(SITE))
ini = ConfigParser(delimiters=["="])
ini.read(SITE.parents[1] / "settings.ini", encoding="utf-8")
settings = ini["DEFAULT"]

project, version, language = settings["title"], settings["version"], "en"
copyright = settings["copyright"] + ", Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton", "links"]

# Notebooks: what is committed is what is shown
nb_execution_mode, nb_render_markdown_format = "off", "myst"     # tables and formulas in outputs too
nb_ipywidgets_js = {}                                   # no live widgets, so nothing to fetch for them
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 4
myst_heading_slug_func = "links.jupyter_slug"           # links to headings are written as JupyterLab wants them

# Formulas: MathJax in one file beside the pages, which asks for no font and no network
mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg-full.js"
mathjax_path = mathjax.name

pygments_style, pygments_dark_style = "a11y-light", "github-dark"
html_theme, html_title = "furo", settings["title"]
html_static_path = ["static", str(SITE.parents[1] / "build" / "static"), str(mathjax)]
html_extra_path = [str(SITE.parents[1] / "LICENSE")]
html_css_files, html_js_files = ["site.css"], [("site.js", {"priority": 250})]
html_copy_source = html_show_sourcelink = False
html_theme_options = dict(top_of_page_buttons=[], light_css_variables={"color-brand-primary": "#2a6fbb", "color-brand-content": "#2a6fbb"},
                          dark_css_variables={"color-brand-primary": "#7fb2ec", "color-brand-content": "#7fb2ec"})
add_module_names = smartquotes = html_domain_indices = False
python_maximum_signature_line_length = 90
copybutton_exclude = ".linenos, .gp, .go"
