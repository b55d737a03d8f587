#!/bin/sh
# mkdocs build --strict --quiet ends with 0 although a link leads nowhere: --quiet lets no warning through, and the strict build counts
# those that come through. The same build without --quiet is aborted. A job that builds quietly checks nothing.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" mkdocs==1.6.1
export PYTHONPATH="$work/packages"
mkdir "$work/docs"
echo 'site_name: links' >"$work/mkdocs.yml"
echo '[a page that is not there](absent.md)' >"$work/docs/index.md"
cd "$work"
python3 -m mkdocs --version
loud=0 && python3 -m mkdocs build --strict 2>&1 || loud=$?
quiet=0 && python3 -m mkdocs build --strict --quiet 2>&1 || quiet=$?
echo "exit code of --strict: $loud; of --strict --quiet: $quiet"
test "$loud" = 1
test "$quiet" = 0
