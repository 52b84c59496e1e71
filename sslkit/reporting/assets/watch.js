// The page of `sslkit watch`: draws what the server's events say. Texts are set as text, never as markup.
'use strict'
var title = document.title, runs = [], current = null, source = null, lines = [], charts = [], previewsKey = '', due = false
function $(selector) { return document.querySelector(selector) }
function make(parent, tag, content, kind) {
  var element = document.createElement(tag)
  if (content !== undefined) element.textContent = content
  if (kind) element.className = kind
  parent.appendChild(element)
  return element
}
function draw(parent, tag, attributes, content) {
  var element = document.createElementNS('http://www.w3.org/2000/svg', tag)
  for (var name in attributes) element.setAttribute(name, attributes[name])
  if (content !== undefined) element.textContent = content
  parent.appendChild(element)
  return element
}
function number(value, share) {
  if (share) return parseFloat((100 * value).toPrecision(3)) + '%'
  var size = Math.abs(value)
  if (size >= 1e6) return parseFloat((value / 1e6).toPrecision(3)) + 'M'
  if (size >= 1e4) return parseFloat((value / 1e3).toPrecision(3)) + 'k'
  if (size >= 1000) return Math.round(value).toLocaleString('en')
  if (size >= 1e-3 || value === 0) return String(parseFloat(value.toPrecision(3)))
  return value.toExponential(1).replace('.0e', 'e')
}
function ticks(low, high, most) {
  var step = (high - low) / most, power = Math.pow(10, Math.floor(Math.log10(step))), list = []
  step = [1, 2, 5, 10].map(function (f) { return f * power }).find(function (s) { return s >= step * (1 - 1e-9) })
  if (Math.ceil(low / step - 1e-9) > Math.floor(high / step + 1e-9)) step /= 2 // no multiple lies between them
  for (var n = Math.ceil(low / step - 1e-9); n <= Math.floor(high / step + 1e-9); n++) list.push(parseFloat((n * step).toPrecision(12)))
  return list
}
function smooth(values) {
  var half = Math.max(1, Math.floor(values.length / 40)), sums = [0]
  values.forEach(function (value) { sums.push(sums[sums.length - 1] + value) })
  return values.map(function (_, i) {
    var reach = Math.min(half, i, values.length - 1 - i)
    return (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)
  })
}
function chart(parent, plan, last) {
  var left = 42, right = 350, top = 10, bottom = 176, series = []
  for (var metric in plan.names) {
    var points = lines.filter(function (line) { return typeof line[metric] === 'number' })
    if (points.length) series.push({ name: plan.names[metric], x: points.map(function (line) { return line.step + 1 }),
      y: points.map(function (line) { return line[metric] * plan.scale }) })
  }
  if (!series.length) return
  var all = [].concat.apply([], series.map(function (s) { return s.y }))
  var levels = Object.keys(plan.levels).map(function (name) { return plan.levels[name] })
  var low = Math.min.apply(null, all), high = Math.max.apply(null, all)
  var log = plan.log && series.every(function (s) { return Math.min.apply(null, s.y) > 0 && Math.max.apply(null, s.y) > 50 * Math.min.apply(null, s.y) })
  low = Math.min.apply(null, [low].concat(levels)), high = Math.max.apply(null, [high].concat(levels))
  var room = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1, floor = low >= 0 ? Math.max(low - room, 0) : low - room
  var bounds = log ? [low / 1.1, high * 1.1] : [floor, high + room]
  function y(value) {
    var part = log ? Math.log(value / bounds[0]) / Math.log(bounds[1] / bounds[0]) : (value - bounds[0]) / (bounds[1] - bounds[0])
    return (bottom + part * (top - bottom)).toFixed(1)
  }
  function x(step) { return (last > 1 ? left + (step - 1) / (last - 1) * (right - left) : (left + right) / 2).toFixed(1) }
  var figure = make(parent, 'figure', undefined, 'chart'), caption = make(figure, 'figcaption'), head = make(caption, 'span')
  make(head, 'b', plan.title)
  if (plan.unit) make(head, 'small', ' ' + plan.unit)
  if (log) make(head, 'small', ' (log scale)')
  if (series.length === 1) make(caption, 'output', number(series[0].y[series[0].y.length - 1], plan.share))
  else {
    var list = make(caption, 'ul')
    series.forEach(function (s, i) {
      make(make(list, 'li', s.name + ' ', 'c' + i % 8), 'output', number(s.y[s.y.length - 1], plan.share))
    })
  }
  var svg = draw(figure, 'svg', { viewBox: '0 0 360 194', role: 'img', 'aria-label': plan.title })
  var marks = log ? [] : ticks(bounds[0], bounds[1], 6)
  if (log) for (var e = Math.floor(Math.log10(bounds[0])); e <= Math.log10(bounds[1]); e++)
    (bounds[1] / bounds[0] < 1e3 ? [1, 2, 5] : [1]).forEach(function (f) { if (f * Math.pow(10, e) >= bounds[0] && f * Math.pow(10, e) <= bounds[1]) marks.push(f * Math.pow(10, e)) })
  marks.forEach(function (mark) {
    draw(svg, 'path', { 'class': 'grid', d: 'M' + left + ' ' + y(mark) + 'H' + right })
    draw(svg, 'text', { x: left - 6, y: +y(mark) + 4, 'text-anchor': 'end' }, number(mark, plan.share))
  })
  ticks(1, Math.max(last, 2), 5).forEach(function (step) {
    if (step !== Math.round(step) || step > last || x(step) < left + 12) return
    draw(svg, 'text', { x: x(step), y: bottom + 15, 'text-anchor': x(step) > right - 10 ? 'end' : 'middle' }, number(step))
  })
  draw(svg, 'text', { x: left - 6, y: bottom + 15, 'text-anchor': 'end' }, 'step')
  draw(svg, 'path', { 'class': 'axis', d: 'M' + left + ' ' + bottom + 'H' + right })
  for (var name in plan.levels) {
    var height = +y(plan.levels[name])
    draw(svg, 'path', { 'class': 'level', d: 'M' + left + ' ' + height + 'H' + right })
    draw(svg, 'text', { x: right, y: height < top + 16 ? height + 13 : height - 4, 'text-anchor': 'end' }, name + ' ' + number(plan.levels[name], plan.share))
  }
  series.forEach(function (s, i) {
    function path(values, kind) {
      draw(svg, 'polyline', { 'class': kind + ' c' + i % 8, points: values.map(function (v, j) { return x(s.x[j]) + ',' + y(v) }).join(' ') })
    }
    if (s.y.length >= 40) path(s.y, 'raw')
    path(s.y.length >= 40 ? smooth(s.y) : s.y, 'line')
    if (s.y.length === 1) draw(svg, 'circle', { 'class': 'c' + i % 8, cx: x(s.x[0]), cy: y(s.y[0]), r: 4 })
  })
  if (plan.note) make(figure, 'p', plan.note)
}
function duration(seconds) {
  if (seconds < 60) return seconds + ' s'
  var minutes = Math.floor(seconds / 60)
  if (minutes < 60) return minutes + ' min' + (minutes < 10 && seconds % 60 ? ' ' + seconds % 60 + ' s' : '')
  return Math.floor(minutes / 60) + ' h' + (minutes % 60 ? ' ' + minutes % 60 + ' min' : '')
}
function redraw() {
  due = false
  var last = lines.reduce(function (most, line) { return Math.max(most, line.step + 1) }, 1)
  ;['#charts', '#others'].forEach(function (place, rank) {
    var box = document.createDocumentFragment()
    charts.filter(function (plan) { return plan.main === !rank }).forEach(function (plan) { chart(box, plan, last) })
    $(place).replaceChildren(box)
  })
  $('details').hidden = !$('#others').children.length
  var alarms = []
  lines.forEach(function (line) { (line.alarms || []).forEach(function (alarm) { alarms.push('Step ' + number(line.step + 1) + ': ' + alarm) }) })
  $('#alarms').replaceChildren()
  alarms.forEach(function (alarm) { make($('#alarms'), 'li', alarm) })
  $('#alarms').hidden = !alarms.length
}
function soon() { if (!due) { due = true; setTimeout(redraw, 100) } }
function show() {
  var run = runs.find(function (each) { return each.name === current })
  $('#runs').replaceChildren()
  $('#runs').hidden = runs.length < 2
  runs.forEach(function (each) {
    var link = make(make($('#runs'), 'li'), 'a', each.name, each.state)
    link.href = '#' + encodeURIComponent(each.name)
    if (each.name === current) link.setAttribute('aria-current', 'page')
  })
  $('h1').textContent = run ? run.name : title
  if (!run) return
  $('#facts').textContent = [run.task, run.encoder, run.data, run.batch ? 'batches of ' + run.batch : ''].filter(Boolean).join(' \u00b7 ')
  var words = { waiting: 'No step yet', finished: 'Finished', running: 'Running', silent: 'No new metrics for ' + run.silent_minutes + ' min: stopped or busy',
    unreadable: 'Some of its files cannot be read' }
  var parts = [words[run.state]]
  if (run.step) parts.push('step ' + run.step.toLocaleString('en') + (run.steps ? ' of ' + run.steps.toLocaleString('en') : ''))
  if (run.left !== null && run.state === 'running') parts.push('about ' + duration(run.left) + ' left')
  $('#state').textContent = parts.join(' \u00b7 ')
  $('#progress').hidden = !run.steps || !run.step
  if (run.steps) $('#progress').value = Math.min(1, run.step / run.steps)
  document.title = (run.steps && run.step ? Math.floor(100 * run.step / run.steps) + '% ' : '') + run.name + ' \u2013 sslkit watch'
  $('#verdict').hidden = !run.result
  $('#verdict p').textContent = run.sentence || run.result
  $('#verdict p.quiet').textContent = run.sentence ? run.result : ''
  var key = run.name + ' ' + run.previews.join(' ')
  if (key === previewsKey) return
  previewsKey = key
  $('section').hidden = !run.previews.length
  $('#previews').replaceChildren()
  run.previews.forEach(function (step) {
    var figure = make($('#previews'), 'figure'), image = make(figure, 'img'), caption = step ? 'After ' + step.toLocaleString('en') + (step === 1 ? ' step' : ' steps') : 'Before the first step'
    image.src = 'preview?run=' + encodeURIComponent(run.name) + '&step=' + step
    image.alt = caption
    make(figure, 'figcaption', caption)
  })
}
function follow(name) {
  if (source) source.close()
  current = name, lines = [], charts = [], previewsKey = ''
  redraw()
  source = new EventSource('events' + (name === null ? '' : '?run=' + encodeURIComponent(name)))
  source.onopen = function () { $('#connection').textContent = 'live'; $('#connection').className = '' }
  source.onerror = function () {
    $('#connection').textContent = source.readyState === 2 ? 'run not found' : 'connection lost, trying again'
    $('#connection').className = 'lost'
  }
  source.addEventListener('runs', function (event) {
    runs = JSON.parse(event.data)
    if (current === null && runs.length) { follow(runs[0].name); return }
    show()
  })
  source.addEventListener('restart', function () { lines = []; soon() })
  source.addEventListener('charts', function (event) { charts = JSON.parse(event.data); soon() })
  source.addEventListener('lines', function (event) { lines = lines.concat(JSON.parse(event.data)); soon() })
  if (runs.length) show()
}
function runInAddress() { return location.hash.length > 1 ? decodeURIComponent(location.hash.slice(1)) : null }
addEventListener('hashchange', function () { follow(runInAddress()) })
follow(runInAddress())
