"""Which policy does this domain serve?  (RFC 8461 §3.2, §3.3; result types of RFC 8460 §4.3)

One GET of `https://mta-sts.<domain>/.well-known/mta-sts.txt`: only status 200 and `text/plain` count.
"""

from dataclasses import dataclass

from smtpguard.https import HttpFailed, HttpFailure, HttpsClient
from smtpguard.mtasts.parse import ParsedPolicy, PolicyInvalid, StsUnavailable, parse_policy
from smtpguard.names import Domain, NameInvalid, parse_domain
from smtpguard.reasons import ReasonCode

POLICY_PATH = "/.well-known/mta-sts.txt"


@dataclass(frozen=True, slots=True)
class FetchedPolicy:
    """A valid policy and the octets it was parsed from, for the store."""

    policy: ParsedPolicy
    octets: bytes


async def fetch_policy(https: HttpsClient, domain: Domain) -> FetchedPolicy | StsUnavailable:
    """The policy that `domain` serves now; a failure carries the code that RFC 8460 reports want.

    Raises nothing but Cancelled.
    """
    try:
        policy_host = parse_domain(f"mta-sts.{domain}")
    except NameInvalid as error:
        return StsUnavailable(ReasonCode.STS_FETCH, str(error), "policy-host-name")
    answer = await https.get(policy_host, POLICY_PATH)
    if isinstance(answer, HttpFailed):
        code = ReasonCode.STS_WEBPKI if answer.kind is HttpFailure.TLS else ReasonCode.STS_FETCH
        # RFC 8461 §3.3 lets mail go on without a policy that the domain cannot serve, not one that we cannot ask for.
        return StsUnavailable(code, answer.detail, answer.code, defer=answer.kind is HttpFailure.LOCAL)
    if answer.status != 200:
        # RFC 8461 §3.3: 3xx MUST NOT be followed; only 200 is a success.
        return StsUnavailable(
            ReasonCode.STS_FETCH,
            f"{policy_host} answered with status {answer.status}",
            f"http-{answer.status}",
        )
    if answer.media_type != "text/plain":
        # RFC 8461 §3.2: else whoever may upload other files to this host could publish its policy.
        shown = answer.media_type or "missing"
        return StsUnavailable(ReasonCode.STS_FETCH, f"the media type is {shown}, not text/plain", "http-media-type")
    parsed = parse_policy(answer.body)
    if isinstance(parsed, PolicyInvalid):
        return StsUnavailable(ReasonCode.STS_INVALID, parsed.detail, parsed.detail)
    return FetchedPolicy(parsed, answer.body)
