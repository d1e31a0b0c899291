"""Tools that are refused, with what is said: by Python's session and by the core alike."""

WRONG_TOOLS = [
    ([], "tools is empty or no list"),
    ("weather", "tools is empty or no list"),
    ([{"name": "1st"}], "tool 0 has the name '1st'; it must be"),
    ([{}], "tool 0 has the name None"),
    ([3], "tool 0 has the name None"),
    ([{"name": "a", "colour": 1}], "the tool a has colour; allowed are"),
    ([{"name": "a", "description": 3}], "the tool a needs a text"),
    ([{"name": "a", "parameters": []}], "the tool a needs a text as its description and a JSON schema"),
    ([{"name": "a"}, {"name": "a"}], "two tools have the name 'a'"),
]
