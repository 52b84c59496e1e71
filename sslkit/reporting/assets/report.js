// The sample under the pointer, on the map of a report.
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
