"""Language tags to the languages that sentencex has rules for.

sentencex itself answers a tag that it does not know with the rules of English, silently.
"""

import logging
import re

from bert_jax.cli import UserError

# Those with rules of their own in sentencex 1.0.
_RULES = """
am ar bg bn ca da de el en es fi fr gu hi hy it ja kk kn ml mr my nl pa pl pt ru sk ta te uk
"""
_WITH_RULES = frozenset(_RULES.split())
# Whose rules other languages take, as sentencex has it (its LANGUAGE_FALLBACKS).
_TAKEN_BY = """
ar: acm aeb apc arq ary arz
bn: bpy
ca: oc
da: jut kl
de: bar dsb frr gsw hrx hsb ksh lb nds pdc pdt pfl rm sli stq vmf
el: pnt
es: an arn ast ay ext gn guc lad nah qu qug
fi: fit krl olo smn vot
fr: atj avk bci bm dua fon frc frp gcf gcr hke ht kab kbp ln lua mg pcd ses sg shy ty wa wls wo
hi: anp awa mag mai sa
hy: hyw
it: aae co egl eml fur lij lld lmo nap pms rgn scn sdc sro vec
kk: kaa
kn: tcy
my: blk kjp ksw mnw
nl: li srn vls
pl: csb szl
pt: gl kea mwl tet vmw
ru: ab alt av ba bxr ce cv gld inh kjh koi krc kum kv lbe lez mdf mhr mrj myv os rut sah sjd
ru: sty tt tyv udm xal
sk: cs
uk: rue
"""
_RULES_OF = {
    code: language
    for language, codes in (line.split(": ") for line in _TAKEN_BY.strip().split("\n"))
    for code in codes.split()
}
# ISO 639-2 and 639-3 codes of the languages that ISO 639-1 has: three letters -> two.
_THREE_LETTERS = """
aar:aa abk:ab afr:af aka:ak alb:sq amh:am ara:ar arg:an arm:hy asm:as ava:av ave:ae aym:ay
aze:az bak:ba bam:bm baq:eu bel:be ben:bn bis:bi bod:bo bos:bs bre:br bul:bg bur:my cat:ca
ces:cs cha:ch che:ce chi:zh chu:cu chv:cv cor:kw cos:co cre:cr cym:cy cze:cs dan:da deu:de
div:dv dut:nl dzo:dz ell:el eng:en epo:eo est:et eus:eu ewe:ee fao:fo fas:fa fij:fj fin:fi
fra:fr fre:fr fry:fy ful:ff geo:ka ger:de gla:gd gle:ga glg:gl glv:gv gre:el grn:gn guj:gu
hat:ht hau:ha hbs:sh heb:he her:hz hin:hi hmo:ho hrv:hr hun:hu hye:hy ibo:ig ice:is ido:io
iii:ii iku:iu ile:ie ina:ia ind:id ipk:ik isl:is ita:it jav:jv jpn:ja kal:kl kan:kn kas:ks
kat:ka kau:kr kaz:kk khm:km kik:ki kin:rw kir:ky kom:kv kon:kg kor:ko kua:kj kur:ku lao:lo
lat:la lav:lv lim:li lin:ln lit:lt ltz:lb lub:lu lug:lg mac:mk mah:mh mal:ml mao:mi mar:mr
may:ms mkd:mk mlg:mg mlt:mt mon:mn mri:mi msa:ms mya:my nau:na nav:nv nbl:nr nde:nd ndo:ng
nep:ne nld:nl nno:nn nob:nb nor:no nya:ny oci:oc oji:oj ori:or orm:om oss:os pan:pa per:fa
pli:pi pol:pl por:pt pus:ps que:qu roh:rm ron:ro rum:ro run:rn rus:ru sag:sg san:sa sin:si
slk:sk slo:sk slv:sl sme:se smo:sm sna:sn snd:sd som:so sot:st spa:es sqi:sq srd:sc srp:sr
ssw:ss sun:su swa:sw swe:sv tah:ty tam:ta tat:tt tel:te tgk:tg tgl:tl tha:th tib:bo tir:ti
ton:to tsn:tn tso:ts tuk:tk tur:tr twi:tw uig:ug ukr:uk urd:ur uzb:uz ven:ve vie:vi vol:vo
wel:cy wln:wa wol:wo xho:xh yid:yi yor:yo zha:za zho:zh zul:zu
"""
_TWO_OF_THREE = dict(pair.split(":") for pair in _THREE_LETTERS.split())
_TWO_LETTERS = frozenset(_TWO_OF_THREE.values())
_TAG = re.compile(r"([a-z]{2,3})([-_][a-z0-9]{1,8})*").fullmatch
_log = logging.getLogger(__name__)


def resolve(tag: str) -> str:
    """'es-MX' -> 'es', 'spa' -> 'es', 'gsw' -> 'de', 'sv' -> 'sv'.

    A language without rules of its own or of a relative is given back as it is, and sentencex
    applies those of English.

    Raises:
      UserError: no tag of a language.
    """
    match = _TAG(tag.lower())
    code = match[1] if match else ""
    code = _TWO_OF_THREE.get(code, code)
    if code in _WITH_RULES:
        return code
    if code in _RULES_OF:
        return _RULES_OF[code]
    if code in _TWO_LETTERS:
        return code
    raise UserError(
        f"--language is {tag}: expected an ISO 639-1 code, such as en, pt-br or spa, of the text's "
        "language"
    )


def warn_without_rules(language: str) -> None:
    """Says so where sentences are found by the rules of another language."""
    if language not in _WITH_RULES:
        _log.warning(
            f"--language={language}: there are no rules for its sentences; those of English are "
            "used, whose abbreviations may not fit (--sentence_per_line takes sentences as they "
            "are)"
        )
