"""The recipe of the documentation site: what mkdocs does not do by itself. `make docs` builds it into `site/`.

The pages are those of `docs/`, and whatever else of the repository they link to: README is the home page, and CONTRIBUTING, CHANGELOG,
notebooks and source files become pages, so that the site is whole and opens without a network. A link is written as GitHub reads it.
"""
