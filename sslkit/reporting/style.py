"""Style sheets of the pages, and the script of the report."""

# Colors by role, for light and dark; series colors keep 3:1 against both grounds.
COLORS = """
:root { color-scheme: light dark; --ground: #fff; --card: #f6f7f9; --ink: #1b1f24; --quiet: #5c6470; --hair: #e1e4e8;
  --good: #1a7f4b; --warn: #9a5b00; --bar: #2f5fd0; --other: #a3abb8;
  --c0: #2f5fd0; --c1: #c2570c; --c2: #15803d; --c3: #9333ea; --c4: #0e7490; --c5: #be185d; --c6: #6b7280; --c7: #854d0e }
@media (prefers-color-scheme: dark) { :root { --ground: #121417; --card: #1b1e23; --ink: #e8eaed; --quiet: #9aa3af;
  --hair: #30353c; --good: #4cc38a; --warn: #f0b45a; --bar: #7aa2ff; --other: #6b7482;
  --c0: #7aa2ff; --c1: #f59e5b; --c2: #5fce8d; --c3: #c79bff; --c4: #56c7dc; --c5: #f48bb8; --c6: #a7afbb; --c7: #d9b25f } }
@media print { :root { color-scheme: light; --ground: #fff; --card: #f6f7f9; --ink: #1b1f24; --quiet: #5c6470; --hair: #e1e4e8;
  --good: #1a7f4b; --warn: #9a5b00; --bar: #2f5fd0; --other: #a3abb8;
  --c0: #2f5fd0; --c1: #c2570c; --c2: #15803d; --c3: #9333ea; --c4: #0e7490; --c5: #be185d; --c6: #6b7280; --c7: #854d0e } }
"""

BASE = (
    COLORS
    + """
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; color: var(--ink); background: var(--ground);
  -webkit-text-size-adjust: 100%; text-size-adjust: 100% }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem clamp(1rem, 3vw, 2rem) 3rem }
h1, h2, h3, p, ul, figure { margin: 0 } h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem } h3 { font-size: 1rem; margin: 1.25rem 0 .5rem }
small, .quiet { color: var(--quiet); font-size: .875rem; font-weight: normal }
a { color: var(--bar) } code, pre { font: .85rem/1.5 ui-monospace, monospace }
pre { background: var(--card); border-radius: 6px; padding: .75rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0 }
.charts { display: grid; gap: 1.5rem 2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)) }
.chart figcaption { font-size: .9rem; line-height: 1.35; margin-bottom: .35rem; display: flex; flex-wrap: wrap; gap: 0 .75rem }
.chart figcaption > span { flex: 1 1 60% } .chart output { font-variant-numeric: tabular-nums }
.chart ul { list-style: none; padding: 0; font-size: .85rem; flex-basis: 100% } .chart li output { font-weight: 600; padding-left: .25rem }
.chart li { display: inline-block; margin-right: 1rem } .chart li::before { content: ""; display: inline-block; width: .8rem;
  height: 3px; border-radius: 2px; margin-right: .35rem; vertical-align: middle; background: currentColor }
.chart p { color: var(--quiet); font-size: .8rem; line-height: 1.35; margin-top: .2rem }
svg { display: block; width: 100%; height: auto; overflow: visible } svg text { font: 11px system-ui, sans-serif; fill: var(--quiet) }
.grid { stroke: var(--hair) } .axis { stroke: var(--other) } path.level { stroke: var(--quiet); stroke-dasharray: 4 4 }
polyline, path { fill: none } .line { stroke-width: 1.8; stroke-linejoin: round; stroke: currentColor }
.raw { stroke-width: 1; opacity: .3; stroke: currentColor } circle { fill: currentColor }
.c0 { color: var(--c0) } .c1 { color: var(--c1) } .c2 { color: var(--c2) } .c3 { color: var(--c3) }
.c4 { color: var(--c4) } .c5 { color: var(--c5) } .c6 { color: var(--c6) } .c7 { color: var(--c7) }
.chart li output { color: var(--ink) }
"""
)

REPORT = (
    BASE
    + """
section { border-top: 1px solid var(--hair); margin-top: 2.25rem } section h2 { margin-top: 1.25rem }
.run { border-top: 3px solid var(--ink); margin-top: 3.5rem; padding-top: 1rem; font-size: 1.4rem }
.verdict { background: var(--card); border-radius: 10px; padding: 1.25rem clamp(1rem, 3vw, 1.75rem); margin: 1.25rem 0;
  border-left: 5px solid var(--other) } .verdict.good { border-color: var(--good) } .verdict.warn { border-color: var(--warn) }
.verdict > p:first-child { font-size: 1.3rem; line-height: 1.4; font-weight: 600; max-width: 56rem; text-wrap: pretty }
.verdict > p { margin-bottom: .5rem } .verdict pre { background: var(--ground) }
.bars { margin-top: 1rem } .bars figcaption { font-size: .9rem; margin-bottom: .5rem } .bars dl { margin: 0 }
.bars > div { display: grid; grid-template-columns: minmax(6rem, 12rem) 1fr max-content; gap: 0 1rem; align-items: center; padding: .2rem 0 }
.bars .name { overflow-wrap: anywhere; line-height: 1.25 } .bars .value { font-variant-numeric: tabular-nums; min-width: 9rem; text-align: right }
.bars .value b { font-size: 1.05rem } .track { position: relative; height: 1.35rem; border-left: 1px solid var(--quiet) }
.fill { position: absolute; inset: 2px auto 2px 0; background: var(--other); border-radius: 0 3px 3px 0 } .main .fill { background: var(--bar) }
.spread { position: absolute; top: 50%; height: 9px; margin-top: -4.5px; border: solid var(--ink); border-width: 0 2px }
.spread::after { content: ""; position: absolute; inset: 3.5px 0 auto 0; border-top: 2px solid var(--ink) }
.track .level { position: absolute; top: -2px; bottom: -2px; border-left: 2px dashed var(--quiet) }
.more { display: grid; gap: .5rem 2.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)) }
.more .bars > div { grid-template-columns: minmax(5rem, 8.5rem) 1fr max-content } .more .bars { font-size: .9rem }
.strip { display: grid; gap: 4px; grid-template-columns: repeat(auto-fill, minmax(4rem, 1fr)); grid-auto-rows: 0; grid-template-rows: auto;
  overflow: hidden; margin-bottom: .75rem; column-gap: 4px; row-gap: 0 } .strip img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 4px }
.pixels { image-rendering: pixelated } img { max-width: 100%; height: auto; display: block }
.side { display: flex; gap: 1rem; overflow-x: auto; scroll-snap-type: x proximity; align-items: flex-start }
.side figure { flex: 1 1 0; min-width: min(15rem, 72vw); max-width: 27rem; scroll-snap-align: start }
.side img, .sheet img { border-radius: 6px; border: 1px solid var(--hair) } .side img { width: 100%; max-height: 75vh; object-fit: contain; object-position: top }
figcaption { color: var(--quiet); font-size: .875rem } .chart figcaption, .bars figcaption { color: var(--ink) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .875rem } td, th { text-align: left; vertical-align: top;
  padding: .3rem 1.25rem .3rem 0; border-bottom: 1px solid var(--hair); white-space: nowrap; font-variant-numeric: tabular-nums }
th { font-weight: 600 } .confusion td { text-align: center; padding: .3rem .6rem }
.confusion th { padding-right: .75rem } details { margin-top: 1rem } summary { cursor: pointer; font-weight: 600; padding: .25rem 0 }
details > :nth-child(2) { margin-top: .5rem } .alarms { color: var(--warn); padding-left: 1.25rem }
.map { position: relative; max-width: 56rem } .map > div { position: absolute; width: 96px; height: 96px; overflow: hidden; pointer-events: none;
  display: none; border: 2px solid var(--ink); border-radius: 4px; background: #fff } .map > div img { position: absolute; max-width: none }
.map text { font-size: 13px; fill: var(--ink) } .map circle { fill-opacity: .75 } .legend { font-size: .875rem; margin-top: .25rem }
@media (max-width: 40rem) { .bars > div, .more .bars > div { grid-template-columns: 1fr max-content; padding: .35rem 0 } .bars .track { grid-row: 2; grid-column: 1 / -1 } }
@media print { body { font-size: 11pt } main { max-width: none; padding: 0 } figure, .verdict, tr, .strip { break-inside: avoid } h2, h3 { break-after: avoid }
  .verdict, .fill, .confusion td, pre { print-color-adjust: exact; -webkit-print-color-adjust: exact } .side { overflow: visible; flex-wrap: wrap }
  .side figure { min-width: 40mm } details::details-content { content-visibility: visible; block-size: auto } .charts { grid-template-columns: repeat(3, 1fr) } }
"""
)

HOVER_SCRIPT = """
document.querySelectorAll('.map').forEach(function (map) {
  var tip = map.querySelector('div'), sheet = tip && tip.querySelector('img')
  if (!tip) return
  map.querySelector('svg').addEventListener('pointerover', function (event) {
    var tile = event.target.getAttribute('data-tile'), columns = +sheet.getAttribute('data-columns')
    tip.style.display = tile === null ? 'none' : 'block'
    if (tile === null) return
    sheet.style.width = 96 * columns + 'px'
    sheet.style.left = -96 * (tile % columns) + 'px'
    sheet.style.top = -96 * Math.floor(tile / columns) + 'px'
    var box = map.getBoundingClientRect(), right = event.clientX - box.left > box.width / 2
    tip.style.left = event.clientX - box.left + (right ? -112 : 16) + 'px'
    tip.style.top = Math.max(0, event.clientY - box.top - 48) + 'px'
  })
})
"""
