"""Commands of the site: a remark that has no room at the end of its line stands above its command."""

from experiments.docs_site.commands import WIDTH, with_remarks_above, with_whole_names

LONG = "x" * (WIDTH - 20)


def test_a_remark_without_room_stands_above_its_command() -> None:
    page = f"Text.\n\n```bash\na --b 1   # short\nc \\\n    {LONG} 'e # f'   # of both lines\n# g\nh\n```\n"
    assert with_remarks_above(page) == (
        f"Text.\n\n```bash\n# short\na --b 1\n# of both lines\nc \\\n    {LONG} 'e # f'\n# g\nh\n```\n"
    )


def test_a_block_with_room_stays() -> None:
    page = f"```bash\na   # short\n{LONG}{LONG}\n```\n\n```python\n{LONG}   # a long remark of another language\n```\n"
    assert with_remarks_above(page) == page


def test_options_are_not_broken_at_their_hyphens() -> None:
    html = '<p>--no <code class="--a">f --save map -o x-y a&lt;-b <b title="--c">--d.e_f</b></code></p>'
    assert with_whole_names(html) == (
        '<p>--no <code class="--a">f <span class="whole">--save</span> map <span class="whole">-o</span> x-y a&lt;-b '
        '<b title="--c"><span class="whole">--d.e_f</span></b></code></p>'
    )


def test_names_in_the_head_of_a_table_are_not_broken_at_their_hyphens() -> None:
    html = "<thead><tr><th>few-shot images</th></tr></thead><td>few-shot</td>"
    assert with_whole_names(html) == html.replace("few-shot images", '<span class="whole">few-shot</span> images')
