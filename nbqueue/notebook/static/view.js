// The live view of one task or map. Everything from a task goes in as text; clocks tick here, without messages.

const ICONS = {
  queued: '<circle cx="8" cy="8" r="5.5" fill="none" stroke="currentColor" stroke-width="1.6" stroke-dasharray="2.4 2.2"/>',
  running: '<circle cx="8" cy="8" r="5.5" fill="none" stroke="currentColor" stroke-width="1.6" opacity=".35"/><path class="nbq-arc" d="M8 2.5a5.5 5.5 0 0 1 5.5 5.5" fill="none" stroke="currentColor" stroke-width="1.8"/><circle cx="8" cy="8" r="1.8" fill="currentColor"/>',
  succeeded: '<path d="M3 8.5l3.2 3.2L13 4.8" fill="none" stroke="currentColor" stroke-width="2"/>',
  failed: '<circle cx="8" cy="8" r="6" fill="currentColor"/><path d="M5.6 5.6l4.8 4.8m0-4.8l-4.8 4.8" stroke="var(--nbq-paper)" stroke-width="1.7"/>',
  retrying: '<path d="M12.8 9.5A5 5 0 1 1 12.3 5.4" fill="none" stroke="currentColor" stroke-width="1.7"/><path d="M13.4 2.6v3.6H9.8z" fill="currentColor"/>',
  cancelled: '<circle cx="8" cy="8" r="5.5" fill="none" stroke="currentColor" stroke-width="1.6"/><path d="M4.2 11.8l7.6-7.6" stroke="currentColor" stroke-width="1.6"/>',
  lost: '<path d="M8 1.8L14.2 8 8 14.2 1.8 8z" fill="none" stroke="currentColor" stroke-width="1.6"/><path d="M8 5v3.6m0 1.6v1" stroke="currentColor" stroke-width="1.6"/>',
}
// In the order of a map's bytes; the word in a legend.
const MEMBERS = ['queued', 'running', 'succeeded', 'failed', 'retrying', 'cancelled', 'lost']
const LEGEND = [[2, 'done'], [3, 'failed'], [6, 'lost'], [4, 'retrying'], [1, 'running'], [5, 'cancelled'], [0, 'queued']]
const INK = { light: ['#7f8895', '#1f7be0', '#2d9d7b', '#b3180f', '#c07a00', '#7f8895', '#6a2391'],
              dark: ['#8e97a4', '#3f95ee', '#1f8767', '#ff7a6b', '#f2c14e', '#8e97a4', '#dcb0f8'] }

function make(tag, name, text) {
  const node = document.createElement(tag)
  if (name) node.className = 'nbq-' + name
  if (text !== undefined) node.textContent = text
  return node
}

function icon(kind) {
  const box = make('span', 'icon')
  box.setAttribute('aria-hidden', 'true')
  box.innerHTML = `<svg viewBox="0 0 16 16" width="14" height="14">${ICONS[kind] || ICONS.running}</svg>`
  return box
}

export function clock(seconds) {
  if (seconds < 10) return Math.max(0, seconds).toFixed(1) + ' s'
  const s = Math.floor(seconds), two = n => String(n).padStart(2, '0')
  if (s < 3600) return `${Math.floor(s / 60)}:${two(s % 60)}`
  if (s < 86400) return `${Math.floor(s / 3600)}:${two(Math.floor(s % 3600 / 60))}:${two(s % 60)}`
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`
}

const count = n => Number(n).toLocaleString('en-US', { maximumFractionDigits: 2 })

function isDark(node) {
  const lab = document.querySelector('[data-jp-theme-light]')
  if (lab) return lab.getAttribute('data-jp-theme-light') === 'false'
  if (document.querySelector('.vscode-dark') || document.documentElement.getAttribute('theme') === 'dark') return true
  return matchMedia('(prefers-color-scheme: dark)').matches
}

// What a model knows, for all of its views. The kernel tells what changes; a page that opens it has asked for all.
const STORES = new WeakMap()
const KEPT_LINES = 2000

function storeOf(model) {
  let store = STORES.get(model)
  if (store) return store
  const log = model.get('log') || { start: 0, lines: [], total: 0 }
  const cells = model.get('cells')
  store = {
    state: model.get('state'), start: log.start, lines: [...(log.lines || [])], total: log.total || 0,
    cells: cells ? new Uint8Array(cells.buffer.slice(cells.byteOffset, cells.byteOffset + cells.byteLength)) : new Uint8Array(0),
    heard: Date.now(), views: new Set(),
  }
  STORES.set(model, store)
  model.on('msg:custom', (message, buffers) => {
    store.heard = Date.now()
    if (message.state) store.state = message.state
    const changed = { log: null, cells: null }
    if (message.log) changed.log = addLines(store, message.log)
    if (message.cells) { const b = buffers[0]; store.cells = new Uint8Array((b.buffer || b).slice(b.byteOffset || 0, (b.byteOffset || 0) + b.byteLength)); changed.cells = 'all' }
    else if (message.runs) {
      for (let i = 0; i < message.runs.length; i += 3) store.cells.fill(message.runs[i + 2], message.runs[i], message.runs[i] + message.runs[i + 1])
      if (message.runs.length) changed.cells = message.runs
    }
    for (const view of store.views) view(changed)
  })
  return store
}

// Lines from `start` on are new or were overwritten; what lies between was skipped here, and is kept elsewhere.
function addLines(store, log) {
  const end = store.start + store.lines.length
  if (log.start > end && store.lines.length) {
    store.lines.push(`… ${count(log.start - end)} lines skipped here, all kept`)
    store.start = log.start - store.lines.length
  }
  if (log.start < store.start) { store.lines = []; store.start = log.start }
  store.lines.length = Math.max(0, Math.min(store.lines.length, log.start - store.start))
  store.lines.push(...log.lines)
  store.total = log.total
  const over = store.lines.length - KEPT_LINES
  if (over > 0) { store.lines.splice(0, over); store.start += over }
  return log.start
}

const COLOURS = { 31: 'red', 32: 'green', 33: 'yellow', 34: 'blue', 35: 'magenta', 36: 'cyan', 90: 'grey', 91: 'red', 92: 'green', 93: 'yellow', 94: 'blue', 95: 'magenta', 96: 'cyan' }

// A line with its terminal colours; nothing in it is ever markup.
function coloured(node, line) {
  if (!line.includes('\x1b[')) { node.textContent = line; return }
  let colour = '', bold = false
  node.replaceChildren()
  for (const [n, part] of line.split(/\x1b\[([0-9;:]*)m/).entries()) {
    if (n % 2) {
      const codes = part.split(/[;:]/).map(Number)
      for (let i = 0; i < codes.length; i++) {
        const code = codes[i]
        if (code === 38 || code === 48) { i += codes[i + 1] === 5 ? 2 : 4; if (code === 38) colour = '' }
        else if (code === 0) { colour = ''; bold = false }
        else if (code === 1) bold = true
        else if (code === 22) bold = false
        else if (code === 39) colour = ''
        else if (COLOURS[code]) colour = COLOURS[code]
      }
    } else if (part) {
      if (!colour && !bold) { node.append(part); continue }
      const span = document.createElement('span')
      if (colour) span.className = 'nbq-ansi-' + colour
      if (bold) span.style.fontWeight = '600'
      span.textContent = part
      node.append(span)
    }
  }
}

function render({ model, el }) {
  const store = storeOf(model)
  const root = make('div', 'view')
  root.classList.add('nbq')
  root.setAttribute('role', 'group')
  const head = make('div', 'head'), chip = make('span', 'chip'), name = make('span', 'name'), where = make('span', 'where')
  const time = make('span', 'time'), cancel = make('button', 'button', 'Cancel'), fold = make('button', 'fold')
  cancel.type = fold.type = 'button'
  fold.setAttribute('aria-label', 'Collapse')
  fold.innerHTML = '<svg aria-hidden="true" viewBox="0 0 16 16" width="14" height="14"><path d="M4 6l4 4 4-4" fill="none" stroke="currentColor" stroke-width="1.6"/></svg>'
  head.append(chip, name, where, make('span', 'space'), time, cancel, fold)
  const body = make('div', 'body'), note = make('div', 'note'), bars = make('div', 'bars'), grid = make('div', 'grid')
  const log = make('pre', 'log'), error = make('div', 'error'), said = make('div', 'said')
  const logBar = make('div', 'logbar'), lineCount = make('span', 'numbers'), following = make('button', 'plain', 'Following')
  const search = document.createElement('input'), wrap = make('button', 'plain', 'Wrap')
  following.type = wrap.type = 'button'
  search.type = 'search'
  search.className = 'nbq-search'
  search.placeholder = 'Search'
  search.setAttribute('aria-label', 'Search the log')
  wrap.setAttribute('aria-pressed', 'true')
  logBar.append(lineCount, following, make('span', 'space'), search, wrap)
  log.tabIndex = 0
  log.setAttribute('data-lm-suppress-shortcuts', 'true')
  search.setAttribute('data-lm-suppress-shortcuts', 'true')
  log.setAttribute('role', 'log')
  log.setAttribute('aria-live', 'off')
  said.setAttribute('role', 'status')
  body.append(note, bars, grid, error, logBar, log)
  root.append(head, body, said)
  el.append(root)

  let asked = 0, follow = true, unseen = 0, dark = isDark(root), lastKind = '', onScreen = true, waiting = null, only = -1
  const rows = new Map()
  cancel.onclick = () => {
    const s = store.state
    // A whole map is not cancelled by a slip: the button asks back, for four seconds.
    if (s.form === 'map' && Date.now() - asked > 4000) {
      asked = Date.now()
      cancel.textContent = `Cancel ${count(s.total - s.done - s.failed)} tasks?`
      setTimeout(() => { if (!store.state.cancelling) cancel.textContent = 'Cancel' }, 4000)
      return
    }
    cancel.textContent = 'Cancelling…'
    cancel.disabled = true
    model.send({ do: 'cancel' })
  }
  fold.onclick = () => {
    const folded = root.classList.toggle('nbq-folded')
    fold.setAttribute('aria-label', folded ? 'Expand' : 'Collapse')
  }
  const pause = yes => {
    follow = !yes
    if (follow) { unseen = 0; log.scrollTop = log.scrollHeight }
    following.textContent = follow ? 'Following' : unseen ? `${count(unseen)} new line${unseen > 1 ? 's' : ''}` : 'Paused'
    following.setAttribute('aria-pressed', follow)
  }
  following.onclick = () => pause(follow)
  log.onscroll = () => {
    const end = log.scrollHeight - log.scrollTop - log.clientHeight < 4
    if (end !== follow) pause(!end)
  }
  log.onkeydown = event => {
    if (event.key === ' ') { pause(follow); event.preventDefault() }
    else if (event.key === 'End') pause(false)
    else if (event.key === '/') { search.focus(); event.preventDefault() }
    else if (event.key === 'w' || event.key === 'W') wrap.click()
    else if (event.key === 'n') find(1)
    else if (event.key === 'N') find(-1)
    else if (event.key === 'Escape') log.blur()
  }
  wrap.onclick = () => wrap.setAttribute('aria-pressed', !log.classList.toggle('nbq-nowrap'))
  search.oninput = () => { mark(); find(0) }
  search.onkeydown = event => {
    if (event.key === 'Enter') find(event.shiftKey ? -1 : 1)
    else if (event.key === 'Escape') { search.value = ''; mark(); log.focus() }
  }

  function mark() {
    const text = search.value.toLowerCase()
    for (const line of log.children) line.classList.toggle('nbq-hit', !!text && line.textContent.toLowerCase().includes(text))
  }

  let found = null
  function find(by) {
    const hits = [...log.querySelectorAll('.nbq-hit')]
    if (!hits.length) return
    const at = hits.indexOf(found)
    found = hits[by ? (at + by + hits.length) % hits.length : hits.length - 1]
    pause(true)
    log.scrollTop = found.offsetTop - log.offsetTop - log.clientHeight / 2
    for (const hit of hits) hit.classList.toggle('nbq-found', hit === found)
  }

  // A kernel that lives is heard every five seconds. A view that isn't live says so, and since when.
  function stale(s) {
    const silent = !s.ready && Date.now() - store.heard > 12000
    if (silent === root.classList.contains('nbq-stale')) return silent
    root.classList.toggle('nbq-stale', silent)
    lastKind = ''
    if (!silent) return false
    chip.replaceChildren(icon('queued'), document.createTextNode(`${s.word} at ${new Date(store.heard).toLocaleTimeString()}`))
    note.textContent = 'Not live: the kernel does not answer. The task goes on without it; run the cell again to watch it.'
    note.hidden = false
    cancel.hidden = true
    said.textContent = `${s.name}: not live`
    return true
  }

  // The theme may change while nothing else does.
  function recolour(s) {
    if (isDark(root) === dark) return
    dark = !dark
    root.classList.toggle('nbq-dark', dark)
    if (s.form === 'map') drawCells(s)
  }

  function tick() {
    const s = store.state
    recolour(s)
    if (stale(s)) return
    const end = s.ended || Date.now() / 1000
    if (s.due) drawWait(s)
    time.textContent = clock(end - (s.started || s.sent || end))
    if (s.form === 'map' && !s.ready) {
      const gone = end - (s.started || end), ended = s.done + s.failed + s.counts[5]
      if (s.started && ended > 2 && gone > 0.5) {
        const rate = ended / gone
        where.textContent = `map of ${count(s.total)} · ${count(rate >= 10 ? Math.round(rate) : rate.toFixed(1))} /s`
        time.textContent = `${clock((s.total - ended) / rate)} left`
      }
    }
  }

  // What a task waits for ticks here, from the instant, without messages.
  function drawWait(s) {
    const left = s.due - Date.now() / 1000
    const soon = s.kind === 'retrying' ? `next attempt in ${clock(left)}` : `starts in ${clock(left)}`
    const text = left > 0 ? [s.note, soon].filter(Boolean).join(' · ') : s.note
    note.textContent = text
    note.hidden = !text
  }

  // Rows are kept while their bar is: what is rebuilt ten times a second can't be read aloud, nor move.
  function drawBars(s) {
    const kept = new Set()
    for (const bar of s.bars || []) {
      const key = `${bar.number}:${bar.closed}`
      kept.add(key)
      let row = rows.get(key)
      if (!row) {
        row = { node: make('div', bar.closed ? 'bar-done' : 'bar'), label: make('span', bar.nested ? 'label-nested' : 'label'),
          track: make('span', 'track'), ink: make('span', 'ink'), percent: make('span', 'percent'), numbers: make('span', 'numbers') }
        if (bar.closed) row.node.append(icon('succeeded'), row.label, row.numbers)
        else {
          row.track.append(row.ink)
          row.track.setAttribute('role', 'progressbar')
          row.node.append(row.label, row.track, row.percent, row.numbers)
        }
        rows.set(key, row)
      }
      row.label.textContent = row.label.title = bar.label
      bars.append(row.node)
      const total = bar.total ? ' / ' + count(bar.total) : '', gone = bar.at - bar.started
      if (bar.closed) { row.numbers.textContent = `${count(bar.done)}${total} in ${clock(gone)}`; continue }
      const share = bar.total ? Math.min(1, bar.done / bar.total) : 0, each = bar.done > 0 ? gone / bar.done : 0
      row.ink.style.width = (100 * share) + '%'
      row.track.setAttribute('aria-label', bar.label)
      row.track.setAttribute('aria-valuetext', `${count(bar.done)} of ${bar.total ? count(bar.total) : 'unknown'}`)
      row.percent.textContent = bar.total ? Math.floor(100 * share) + ' %' : ''
      const pace = each && gone > 1 ? each >= 1 ? ` · ${clock(each)} each` : ` · ${count(Math.round(10 / each) / 10)} /s` : ''
      const left = each && bar.total && bar.done < bar.total ? ` · ${clock(each * (bar.total - bar.done))} left` : ''
      row.numbers.textContent = `${count(bar.done)}${total}${pace}${left}`
    }
    for (const [key, row] of rows) if (!kept.has(key)) { row.node.remove(); rows.delete(key) }
    if (s.more) bars.append(more)
    more.textContent = `+ ${s.more} more bar${s.more > 1 ? 's' : ''}`
  }
  const more = make('div', 'caption')

  // Kept for as long as the view is: a button that is made anew ten times a second can't be clicked.
  const strip = make('div', 'strip'), legend = make('div', 'legend'), shareText = make('span', 'numbers'), parts = new Map(), kinds = new Map()
  for (const [n, word] of LEGEND) {
    const part = make('span', n ? 'part' : 'rest'), item = make('button', 'count'), number = make('b')
    part.dataset.kind = item.dataset.kind = MEMBERS[n]
    item.type = 'button'
    item.append(icon(MEMBERS[n]), number, document.createTextNode(' ' + word))
    item.onclick = () => { only = only === n ? -1 : n; drawMap(store.state, 'all') }
    strip.append(part)
    legend.append(item)
    parts.set(n, { part, item, number, word })
  }
  legend.append(make('span', 'space'), shareText)

  function drawMap(s, cells) {
    if (!strip.isConnected) bars.replaceChildren(strip, legend)
    for (const [n, { part, item, number, word }] of parts) {
      part.style.flexGrow = s.counts[n]
      part.hidden = item.hidden = !s.counts[n]
      number.textContent = count(s.counts[n])
      item.setAttribute('aria-pressed', only === n)
      item.title = only === n ? 'Show all marks' : `Show only what is ${word}`
    }
    const share = s.total ? 100 * (s.done + s.failed + s.counts[5]) / s.total : 100
    shareText.textContent = share.toFixed(1) + ' %'
    const now = new Set(s.kinds.map(kind => kind.text))
    for (const [text, row] of kinds) if (!now.has(text)) { row.node.remove(); kinds.delete(text) }
    for (const kind of s.kinds) {
      let row = kinds.get(kind.text)
      if (!row) {
        row = { node: make('div', 'kind'), number: make('b'), where: make('span', 'numbers') }
        const text = make('code', 'kind-text', kind.text)
        text.title = kind.text
        row.node.append(icon('failed'), row.number, text, row.where)
        kinds.set(kind.text, row)
      }
      row.number.textContent = count(kind.count)
      row.where.textContent = 'first #' + count(kind.first)
      error.append(row.node)
    }
    drawCells(s, cells)
  }

  let fit = null, at = -1

  function drawCells(s, runs) {
    const data = store.cells, n = data.length
    if (!n) return
    const width = Math.max(100, grid.clientWidth || 800)
    let canvas = grid.querySelector('canvas')
    if (!canvas) {
      canvas = make('canvas', 'canvas')
      canvas.setAttribute('role', 'img')
      canvas.tabIndex = 0
      canvas.setAttribute('data-lm-suppress-shortcuts', 'true')
      canvas.onmousemove = event => {
        const box = canvas.getBoundingClientRect(), x = Math.floor((event.clientX - box.left) / fit.pitch), y = Math.floor((event.clientY - box.top) / fit.pitch)
        point(x < fit.across ? y * fit.across + x : -1)
      }
      canvas.onmouseleave = () => point(-1)
      canvas.onkeydown = keys
      grid.replaceChildren(canvas, make('div', 'caption'))
    }
    const key = `${n} ${width} ${dark} ${only} ${window.devicePixelRatio}`
    const whole = !runs || runs === 'all' || !fit || fit.key !== key
    if (whole) {
      const pitch = [15, 12, 10, 8, 6, 5, 4].find(p => Math.ceil(n / Math.floor(width / p)) * p <= (p > 8 ? 100 : 200)) || 4
      const across = Math.floor(width / pitch), high = Math.ceil(n / across) * pitch, scale = window.devicePixelRatio || 1
      fit = { key, pitch, across, scale }
      canvas.width = width * scale
      canvas.height = high * scale
      canvas.style.height = high + 'px'
    }
    canvas.setAttribute('aria-label', `${s.done} done, ${s.failed} failed of ${s.total}`)
    if (at < 0) grid.lastChild.textContent = s.step > 1 ? `one cell = ${s.step} tasks; one failure marks the cell` : 'one cell a task, in call order'
    const pen = canvas.getContext('2d')
    pen.setTransform(fit.scale, 0, 0, fit.scale, 0, 0)
    if (whole) for (let i = 0; i < n; i++) paint(pen, i, data[i])
    else for (let r = 0; r < runs.length; r += 3) for (let i = runs[r]; i < runs[r] + runs[r + 1]; i++) paint(pen, i, data[i])
  }

  // Ink grows as work gets done: dot, ring, square. What is not done as it should be has a mark of its own.
  function paint(pen, i, kind) {
    const { pitch, across } = fit, x = (i % across) * pitch, y = Math.floor(i / across) * pitch
    const size = Math.max(2, pitch - (pitch > 6 ? 2 : 1))
    pen.clearRect(x, y, pitch, pitch)
    pen.globalAlpha = only < 0 || only === kind ? 1 : 0.15
    pen.fillStyle = pen.strokeStyle = INK[dark ? 'dark' : 'light'][kind]
    if (kind === 0) pen.fillRect(x + pitch / 2 - 1, y + pitch / 2 - 1, 1.5, 1.5)
    else if (kind === 1 && pitch >= 5) { pen.lineWidth = pitch > 8 ? 1.6 : 1; pen.strokeRect(x + 1, y + 1, size - 1.5, size - 1.5) }
    else if (kind === 5) { pen.lineWidth = 1; line(pen, x + 1, y + size - 1, x + size - 1, y + 1) }
    else pen.fillRect(x, y, size, size)
    pen.strokeStyle = pen.fillStyle = dark ? '#111' : '#fff'
    pen.lineWidth = pitch > 8 ? 1.5 : 1
    if (kind === 3 && pitch >= 6) {
      line(pen, x + size * 0.28, y + size * 0.28, x + size * 0.72, y + size * 0.72)
      line(pen, x + size * 0.72, y + size * 0.28, x + size * 0.28, y + size * 0.72)
    } else if (kind === 4 && pitch >= 6) pen.fillRect(x + size / 2 - 1, y + size / 2 - 1, 2, 2)
    pen.globalAlpha = 1
  }

  function line(pen, x0, y0, x1, y1) {
    pen.beginPath()
    pen.moveTo(x0, y0)
    pen.lineTo(x1, y1)
    pen.stroke()
  }

  function point(i) {
    const s = store.state
    at = i >= 0 && i < store.cells.length ? i : -1
    if (at < 0) { drawCells(s, []); return }
    const first = at * s.step, last = Math.min(s.total, first + s.step) - 1
    grid.lastChild.textContent = `${s.step > 1 ? `#${count(first)} to #${count(last)}` : `#${count(first)}`}: ${MEMBERS[store.cells[at]]}`
  }

  function keys(event) {
    const n = store.cells.length, steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: fit.across, ArrowUp: -fit.across }
    let to = at
    if (steps[event.key]) to = Math.min(n - 1, Math.max(0, at + steps[event.key]))
    else if (event.key === 'Home') to = 0
    else if (event.key === 'End') to = n - 1
    else if (event.key === 'f' || event.key === 'F') { to = store.cells.indexOf(3, at + 1); if (to < 0) to = store.cells.indexOf(3) }
    else if (event.key === 'Escape') { point(-1); event.target.blur(); return }
    else return
    event.preventDefault()
    point(to)
  }

  function draw(cells) {
    const s = store.state
    if (Date.now() - store.heard < 12000) root.classList.remove('nbq-stale')
    dark = isDark(root)
    root.classList.toggle('nbq-dark', dark)
    root.dataset.kind = s.kind
    if (s.kind + s.word !== lastKind) {
      lastKind = s.kind + s.word
      chip.replaceChildren(icon(s.kind), document.createTextNode(s.word))
      chip.title = s.state || s.word
      said.textContent = `${s.name}: ${s.word}`
    }
    name.textContent = s.name
    name.title = s.name + ' · ' + s.id
    root.setAttribute('aria-label', `${s.form === 'map' ? 'Map' : 'Task'} ${s.name}, ${s.word}`)
    const child = s.child ? ` · child ${s.child}` : '', attempt = s.attempt > 1 ? ` · attempt ${s.attempt}` : ''
    where.textContent = s.form === 'map' ? `map of ${count(s.total)}` : s.worker ? s.worker + child + attempt : `queue ${s.queue}`
    where.title = where.textContent
    note.textContent = s.note
    note.hidden = !s.note
    cancel.hidden = s.ready
    if (s.cancelling) { cancel.textContent = 'Cancelling…'; cancel.disabled = true }
    else if (cancel.disabled) { cancel.textContent = 'Cancel'; cancel.disabled = false }
    if (s.form === 'map') drawMap(s, cells)
    else {
      drawBars(s)
      error.replaceChildren()
      if (s.error) error.append(make('code', 'error-text', s.kind === 'retrying' ? `Attempt ${s.attempt} failed: ${s.error}` : s.error))
      if (s.error && s.traceback) error.append(make('pre', 'traceback', s.traceback))
    }
    tick()
  }

  // Only the lines that changed are touched; `from` is the number of the first of them, null for all.
  let first = store.start
  function drawLog(from) {
    log.hidden = logBar.hidden = !store.lines.length
    if (from === null || from === undefined || first > store.start) { log.replaceChildren(); first = store.start }
    for (; first < store.start && log.firstChild; first++) log.firstChild.remove()
    first = store.start
    const keep = from === null || from === undefined ? 0 : Math.max(0, Math.min(log.childElementCount, from - store.start - 1))
    const before = log.childElementCount
    while (log.childElementCount > keep) log.lastChild.remove()
    for (let i = keep; i < store.lines.length; i++) {
      const node = make('div', 'line')
      coloured(node, store.lines[i])
      log.append(node)
    }
    if (search.value) mark()
    lineCount.textContent = `${count(store.total)} line${store.total === 1 ? '' : 's'}`
    if (follow) log.scrollTop = log.scrollHeight
    else { unseen += Math.max(0, store.lines.length - before); pause(true) }
  }

  // News is drawn with the next frame, all of it at once; off screen it waits.
  function news(changed) {
    waiting ??= { log: undefined, cells: [] }
    if (changed.log !== null) waiting.log = waiting.log === undefined ? changed.log : Math.min(waiting.log, changed.log)
    if (changed.cells === 'all' || waiting.cells === 'all') waiting.cells = 'all'
    else if (changed.cells) waiting.cells.push(...changed.cells)
    if (waiting.asked || !onScreen) return
    waiting.asked = true
    requestAnimationFrame(show)
  }

  function show() {
    if (!waiting) return
    const { log: from, cells } = waiting
    waiting = null
    draw(cells)
    if (from !== undefined) drawLog(from)
  }

  store.views.add(news)
  const seen = new IntersectionObserver(entries => {
    onScreen = entries[entries.length - 1].isIntersecting
    if (onScreen && waiting) show()
  })
  seen.observe(root)
  const timer = setInterval(() => { if (root.isConnected && !document.hidden && onScreen) tick() }, 1000)
  const resized = new ResizeObserver(() => { if (store.state.form === 'map') drawCells(store.state) })
  resized.observe(grid)
  draw()
  drawLog()
  return () => { clearInterval(timer); resized.disconnect(); seen.disconnect(); store.views.delete(news) }
}

export default { initialize: ({ model }) => { storeOf(model) }, render }
