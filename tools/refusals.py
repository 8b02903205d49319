"""Writes docs/refusals.md from the one table of reasons: `python tools/refusals.py > docs/refusals.md`."""

from smtpguard.reasons import ReasonCode

HEAD = """# Refusals

Made by `python tools/refusals.py` from `smtpguard/reasons.py`.  Every refusal of smtpguard's own reads

    451 4.7.5 [dane/no-match] mx1.example.org[192.0.2.1]:25: no TLSA record matches the certificate (id 3f9q2a01c.7)

The word in brackets is the token below; `smtpguard explain ID` shows what else was seen.  A reply without a token is
the mail host's own, relayed with the host, the policy and the id behind it.  A 4xx leaves the mail in the MTA's queue.

The way out is for whoever runs this smtpguard.  "There" is the receiving side; its postmaster is `postmaster@` the
domain, by a path that works, or the contact in its WHOIS entry.

| token | reply | means | way out | RFC 8460 result type |
|---|---|---|---|---|
"""


def text() -> str:
    """The whole page."""
    rows = [
        f"| `{code.token}` | {code.reply_code} {code.status} | {code.text} | {code.advice} | "
        f"{code.result_type.value if code.result_type else ''} |"
        for code in ReasonCode
        if code.reply_code >= 400
    ]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(text(), end="")
