"""Rules and sources for Hypothesis."""

from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

# Few distinct bytes, so that networks overlap and sources fall into them.
BYTE = st.sampled_from([0, 1, 10, 128, 255])


FOUR = st.lists(BYTE, min_size=4, max_size=4)


V4 = FOUR.map(lambda some: str(IPv4Address(bytes(some))))


V6 = FOUR.map(lambda some: str(IPv6Address(bytes((32, *some[:2], *bytes(11), *some[2:])))))


NETWORK = st.one_of(
    st.builds("{}/{}".format, V4, st.sampled_from([0, 1, 8, 9, 16, 24, 31, 32])),
    st.builds("{}/{}".format, V6, st.sampled_from([0, 1, 8, 16, 24, 64, 113, 127, 128])),
)


SOURCE = V4 | V6 | V4.map("::ffff:{}".format)
