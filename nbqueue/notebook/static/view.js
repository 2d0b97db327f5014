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

function render({ model, el }) {
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
  log.setAttribute('role', 'log')
  log.setAttribute('aria-live', 'off')
  said.setAttribute('role', 'status')
  body.append(note, bars, grid, error, log)
  root.append(head, body, said)
  el.append(root)

  let asked = 0, follow = true, dark = isDark(root), lastKind = '', heard = Date.now()
  cancel.onclick = () => {
    const s = model.get('state')
    // A whole map is not cancelled by a slip: the button asks back, for four seconds.
    if (s.form === 'map' && Date.now() - asked > 4000) {
      asked = Date.now()
      cancel.textContent = `Cancel ${count(s.total - s.done - s.failed)} tasks?`
      setTimeout(() => { if (!model.get('state').cancelling) cancel.textContent = 'Cancel' }, 4000)
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
  log.onscroll = () => { follow = log.scrollHeight - log.scrollTop - log.clientHeight < 4 }

  // A kernel that lives is heard every five seconds. A view that isn't live says so, and since when.
  function stale(s) {
    const silent = !s.ready && Date.now() - heard > 12000
    if (silent === root.classList.contains('nbq-stale')) return silent
    root.classList.toggle('nbq-stale', silent)
    lastKind = ''
    if (!silent) return false
    chip.replaceChildren(icon('queued'), document.createTextNode(`${s.word} at ${new Date(heard).toLocaleTimeString()}`))
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
    const s = model.get('state')
    recolour(s)
    if (stale(s)) return
    const end = s.ended || Date.now() / 1000
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

  function drawBars(s) {
    bars.replaceChildren(...(s.bars || []).map(bar => {
      const row = make('div', bar.closed ? 'bar-done' : 'bar')
      const label = make('span', bar.nested ? 'label-nested' : 'label', bar.label)
      label.title = bar.label
      if (bar.closed) {
        const text = bar.total ? `${count(bar.done)} / ${count(bar.total)}` : count(bar.done)
        row.append(icon('succeeded'), label, make('span', 'numbers', `${text} in ${clock(bar.at - bar.started)}`))
        return row
      }
      const share = bar.total ? Math.min(1, bar.done / bar.total) : 0
      const track = make('span', 'track'), ink = make('span', 'ink')
      ink.style.width = (100 * share) + '%'
      track.append(ink)
      track.setAttribute('role', 'progressbar')
      track.setAttribute('aria-valuetext', `${count(bar.done)} of ${bar.total ? count(bar.total) : 'unknown'}`)
      const each = bar.done > 0 ? (bar.at - bar.started) / bar.done : 0
      const left = each && bar.total ? ` · ${clock(each * (bar.total - bar.done))} left` : ''
      row.append(label, track, make('span', 'percent', bar.total ? Math.floor(100 * share) + ' %' : ''),
        make('span', 'numbers', `${count(bar.done)}${bar.total ? ' / ' + count(bar.total) : ''}${left}`))
      return row
    }))
  }

  function drawMap(s) {
    const strip = make('div', 'strip'), legend = make('div', 'legend')
    for (const [n, word] of LEGEND) {
      if (!s.counts[n]) continue
      if (n) {
        const part = make('span', 'part')
        part.dataset.kind = MEMBERS[n]
        part.style.flexGrow = s.counts[n]
        strip.append(part)
      }
      const item = make('span', 'count')
      item.dataset.kind = MEMBERS[n]
      item.append(icon(MEMBERS[n]), make('b', '', count(s.counts[n])), document.createTextNode(' ' + word))
      legend.append(item)
    }
    const rest = make('span', 'rest')
    rest.style.flexGrow = s.counts[0]
    strip.append(rest)
    const share = s.total ? 100 * (s.done + s.failed + s.counts[5]) / s.total : 100
    legend.append(make('span', 'space'), make('span', 'numbers', share.toFixed(1) + ' %'))
    bars.replaceChildren(strip, legend)
    const rows = s.kinds.map(kind => {
      const row = make('div', 'kind')
      const text = make('code', 'kind-text', kind.text)
      text.title = kind.text
      row.append(icon('failed'), make('b', '', count(kind.count)), text, make('span', 'numbers', 'first #' + count(kind.first)))
      return row
    })
    error.replaceChildren(...rows)
    drawCells(s)
  }

  function drawCells(s) {
    const data = model.get('cells'), n = data.byteLength
    if (!n) return
    const width = Math.max(100, grid.clientWidth || 800)
    const pitch = [15, 12, 10, 8, 6, 5, 4].find(p => Math.ceil(n / Math.floor(width / p)) * p <= (p > 8 ? 100 : 200)) || 4
    const across = Math.floor(width / pitch), high = Math.ceil(n / across) * pitch, scale = window.devicePixelRatio || 1
    let canvas = grid.querySelector('canvas')
    if (!canvas) {
      canvas = make('canvas', 'canvas')
      canvas.setAttribute('role', 'img')
      grid.replaceChildren(canvas, make('div', 'caption'))
    }
    canvas.width = width * scale
    canvas.height = high * scale
    canvas.style.height = high + 'px'
    canvas.setAttribute('aria-label', `${s.done} done, ${s.failed} failed of ${s.total}`)
    grid.lastChild.textContent = s.step > 1 ? `one cell = ${s.step} tasks; one failure marks the cell` : 'one cell a task, in call order'
    const pen = canvas.getContext('2d'), ink = INK[dark ? 'dark' : 'light'], size = Math.max(2, pitch - (pitch > 6 ? 2 : 1))
    pen.scale(scale, scale)
    for (let i = 0; i < n; i++) {
      const kind = data.getUint8(i), x = (i % across) * pitch, y = Math.floor(i / across) * pitch
      pen.fillStyle = pen.strokeStyle = ink[kind]
      if (kind === 0) pen.fillRect(x + pitch / 2 - 1, y + pitch / 2 - 1, 1.5, 1.5)
      else if (kind === 1 && pitch >= 5) { pen.lineWidth = pitch > 8 ? 1.6 : 1; pen.strokeRect(x + 1, y + 1, size - 1.5, size - 1.5) }
      else pen.fillRect(x, y, size, size)
      if (kind === 3 && pitch >= 6) {
        pen.strokeStyle = dark ? '#111' : '#fff'
        pen.lineWidth = pitch > 8 ? 1.5 : 1
        pen.beginPath()
        pen.moveTo(x + size * 0.28, y + size * 0.28); pen.lineTo(x + size * 0.72, y + size * 0.72)
        pen.moveTo(x + size * 0.72, y + size * 0.28); pen.lineTo(x + size * 0.28, y + size * 0.72)
        pen.stroke()
      }
    }
  }

  function draw() {
    const s = model.get('state')
    heard = Date.now()
    root.classList.remove('nbq-stale')
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
    if (s.form === 'map') drawMap(s)
    else {
      drawBars(s)
      error.replaceChildren()
      if (s.error) error.append(make('code', 'error-text', s.error), make('pre', 'traceback', s.traceback))
    }
    tick()
  }

  function drawLog() {
    const lines = model.get('log')
    log.hidden = !lines.length
    log.textContent = lines.join('\n')
    if (follow) log.scrollTop = log.scrollHeight
  }

  model.on('change:state', draw)
  model.on('change:cells', () => drawCells(model.get('state')))
  model.on('change:log', drawLog)
  const timer = setInterval(() => { if (root.isConnected && !document.hidden) tick() }, 1000)
  const resized = new ResizeObserver(() => { if (model.get('state').form === 'map') drawCells(model.get('state')) })
  resized.observe(grid)
  draw()
  drawLog()
  return () => { clearInterval(timer); resized.disconnect() }
}

export default { render }
