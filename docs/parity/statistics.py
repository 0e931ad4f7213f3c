"""Intervals and tests of the results page by statsmodels, for the tests of `report`.

pip install statsmodels==0.14.5
"""

from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint, proportions_ztest

for hits, n in [(8271, 10000), (352, 360), (0, 10)]:
    print("wilson", hits, n, *map(repr, map(float, proportion_confint(hits, n, method="wilson"))))
for a, b, n in [(8271, 8352, 10000), (350, 352, 360)]:
    print("two_shares", a, b, n, repr(float(proportions_ztest([a, b], [n, n])[1])))
for b, c in [(2, 8), (12, 12), (3, 21), (150, 86), (30, 31)]:
    print("mcnemar", b, c, repr(float(mcnemar([[0, b], [c, 0]], exact=b + c < 25, correction=True).pvalue)))
ps = [0.01, 0.04, 0.03, 0.005, 0.5]
print("holm", [float(p) for p in multipletests(ps, method="holm")[1]])
