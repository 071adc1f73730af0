"""The card of a profile: what it states, and names that are no Markdown."""

from sp_profile.card import profile_card


def test_card_states_what_was_measured(examples):
    card = profile_card(examples.make_profile())
    front = card.split("---\n")[1]
    assert 'base_model: "example/tiny"' in front
    assert "| borrow | 3 | 0.950 | 0.300 |" in card
    assert "recall of at least 0.9" in card


def test_card_escapes_names(examples):
    card = profile_card(examples.make_profile(model_name="a|b `x` <img src=x> [l](u)\u2028"))
    assert "base_model" not in card
    assert "a\\|b \\`x\\` \\<img src=x\\> \\[l\\](u)" in card
