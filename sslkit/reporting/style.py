"""Style sheet and script of the report."""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #222; background: #fff }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1.5rem }
img, svg { max-width: 100%; height: auto } figure { margin: 1rem 0 } figcaption { color: #555 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
.confusion td { text-align: center; padding: .3rem .5rem } .confusion tr:first-child th { padding-right: .5rem }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #eee; vertical-align: top }
th, td { white-space: nowrap; font-variant-numeric: tabular-nums }
pre { background: #f5f5f5; padding: .75rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
.side { display: flex; flex-wrap: wrap; gap: 0 1.5rem } .side figure { flex: 0 1 27rem; margin: .5rem 0 }
.map { position: relative } .map img { position: absolute; width: 96px; image-rendering: pixelated; border: 2px solid #222;
  pointer-events: none; display: none; background: #fff } .pixels { image-rendering: pixelated }
"""


HOVER_SCRIPT = """
document.querySelectorAll('.map').forEach(function (map) {
  var picture = map.querySelector('img'), pictures = JSON.parse(map.querySelector('script').textContent)
  map.querySelector('svg').addEventListener('pointerover', function (event) {
    var place = event.target.getAttribute('data-image')
    picture.style.display = place === null ? 'none' : 'block'
    if (place === null) return
    picture.src = 'data:image/png;base64,' + pictures[place]
    var box = map.getBoundingClientRect(), right = event.clientX - box.left > box.width / 2
    picture.style.left = (event.clientX - box.left + (right ? -112 : 16)) + 'px'
    picture.style.top = Math.max(0, event.clientY - box.top - 48) + 'px'
  })
})
"""
