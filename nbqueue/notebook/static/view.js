// The live view of one task or map. Everything from a task goes in as text; clocks tick here, without messages.

const svg = (inside, size = 14) => `<svg aria-hidden="true" viewBox="0 0 16 16" width="${size}" height="${size}" fill="none" stroke="currentColor" stroke-width="1.6">${inside}</svg>`
const ICONS = {
  queued: '<circle cx="8" cy="8" r="5.5" stroke-dasharray="2.4 2.2"/>',
  scheduled: '<circle cx="8" cy="8" r="5.8"/><path d="M8 4.6V8l2.4 1.6"/>',
  running: '<circle cx="8" cy="8" r="5.5" opacity=".35"/><path class="nbq-arc" d="M8 2.5a5.5 5.5 0 0 1 5.5 5.5" stroke-width="1.8"/><circle cx="8" cy="8" r="1.8" fill="currentColor" stroke="none"/>',
  succeeded: '<path d="M3 8.5l3.2 3.2L13 4.8" stroke-width="2"/>',
  failed: '<circle cx="8" cy="8" r="6.5" fill="currentColor" stroke="none"/><path d="M5.6 5.6l4.8 4.8m0-4.8l-4.8 4.8" stroke="var(--nbq-paper)" stroke-width="1.7"/>',
  retrying: '<path d="M12.8 9.5A5 5 0 1 1 12.3 5.4" stroke-width="1.7"/><path d="M13.4 2.6v3.6H9.8z" fill="currentColor" stroke="none"/>',
  cancelled: '<circle cx="8" cy="8" r="5.5"/><path d="M4.2 11.8l7.6-7.6"/>',
  lost: '<path d="M8 1.8L14.2 8 8 14.2 1.8 8z"/><path d="M8 5v3.6m0 1.6v1"/>',
  fold: '<path d="M4 6l4 4 4-4"/>',
  copy: '<rect x="5.5" y="5.5" width="8" height="8" rx="1.4"/><path d="M3.4 10.4h-.6a.9.9 0 0 1-.9-.9V2.9c0-.5.4-.9.9-.9h6.6c.5 0 .9.4.9.9v.6"/>',
  play: '<path d="M5 3.4v9.2L12.6 8z" fill="currentColor" stroke="none"/>',
  stop: '<rect x="4" y="4" width="8" height="8" rx="1" fill="currentColor" stroke="none"/>',
  pause: '<path d="M5.5 4v8M10.5 4v8" stroke-width="2"/>',
  down: '<path d="M8 3v9M4.5 8.7L8 12.2l3.5-3.5"/>',
  search: '<circle cx="7" cy="7" r="4.3"/><path d="M10.3 10.3l3.4 3.4"/>',
  wrap: '<path d="M2 4h12M2 8h9.5a2 2 0 0 1 0 4H9M10.6 10.4L9 12l1.6 1.6M2 12h4"/>',
}
// In the order of a map's bytes; the word in a legend.
const MEMBERS = ['queued', 'running', 'succeeded', 'failed', 'retrying', 'cancelled', 'lost']
const LEGEND = [[2, 'done'], [3, 'failed'], [6, 'lost'], [4, 'retrying'], [1, 'running'], [5, 'cancelled'], [0, 'queued']]
const WORD = Object.fromEntries(LEGEND)
// A cell that stands for several tasks shows the first of these that is among them.
const WORST_FIRST = [3, 6, 4, 1, 0, 5, 2]
const RANK = MEMBERS.map((_, n) => WORST_FIRST.indexOf(n))
const PITCHES = [15, 12, 10, 8, 6, 5, 4], MERGES = [1, 2, 4, 5, 8, 10, 16, 20, 25, 40, 50, 100], GUTTER = 14
const INK = { light: ['#7f8895', '#1f7be0', '#2d9d7b', '#b3180f', '#c07a00', '#7f8895', '#6a2391'],
              dark: ['#8e97a4', '#3f95ee', '#1f8767', '#ff7a6b', '#f2c14e', '#8e97a4', '#dcb0f8'] }
const KEPT_LINES = 2000, SILENT_MS = 12000, QUIET_MS = 10000, LINGER_MS = 4000, AWAY_MS = 60000

function make(tag, name, text) {
  const node = document.createElement(tag)
  if (name) node.className = 'nbq-' + name
  if (text !== undefined) node.textContent = text
  return node
}

function icon(kind) {
  const box = make('span', 'icon')
  box.innerHTML = svg(ICONS[kind] || ICONS.running)
  return box
}

function button(name, sign, text, label) {
  const node = make('button', name)
  node.type = 'button'
  if (sign) node.append(icon(sign))
  if (text) node.append(make('span', 'word', text))
  if (label) { node.title = label; node.setAttribute('aria-label', label) }
  return node
}

// What is there already is not touched: a page that is read aloud, selected in or focused stays as it is.
const say = (node, text) => { if (node.textContent !== text) node.textContent = text }
const set = (node, name, value) => { if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value) }
const put = (parent, node, at) => { if (parent.children[at] !== node) parent.insertBefore(node, parent.children[at] || null) }

export function clock(seconds) {
  if (seconds < 10) return Math.max(0, seconds).toFixed(1) + ' s'
  const s = Math.floor(seconds), two = n => String(n).padStart(2, '0')
  if (s < 3600) return `${Math.floor(s / 60)}:${two(s % 60)}`
  if (s < 86400) return `${Math.floor(s / 3600)}:${two(Math.floor(s % 3600 / 60))}:${two(s % 60)}`
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`
}

// How much of a bar: counted, or bytes where that is its unit.
function amount(n, unit) {
  if (unit !== 'B') return count(n)
  for (const [size, name] of [[1e9, 'GB'], [1e6, 'MB'], [1e3, 'kB']]) if (n >= size) return `${(n / size).toFixed(n < 10 * size ? 1 : 0)} ${name}`
  return `${count(n)} B`
}

// A countdown has no tenths: it is drawn once a second.
const countdown = seconds => seconds < 10 ? `${Math.ceil(seconds)} s` : clock(seconds)
const spoken = seconds => seconds < 60 ? `${Math.round(seconds)} seconds` : `${Math.floor(seconds / 60)} minutes ${Math.floor(seconds % 60)}`
const count = n => Number(n).toLocaleString('en-US', { maximumFractionDigits: 2 })
const many = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`

function instant(seconds) {
  const date = new Date(1000 * seconds), today = new Date().toDateString() === date.toDateString()
  const time = date.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' })
  return today ? time : `${date.toLocaleDateString([], { day: 'numeric', month: 'short' })} ${time}`
}

function isDark() {
  const lab = document.querySelector('[data-jp-theme-light]')
  if (lab) return lab.getAttribute('data-jp-theme-light') === 'false'
  if (document.querySelector('.vscode-dark') || document.documentElement.getAttribute('theme') === 'dark') return true
  return matchMedia('(prefers-color-scheme: dark)').matches
}

// ---- what a model knows, for all of its views. The kernel numbers what it tells; who missed something asks for all.

const STORES = new Map()

function open(model) {
  const now = model.get('now'), known = STORES.get(now.key)
  if (known) return known
  const store = { key: now.key, views: new Set(), asked: 0, members: new Map() }
  fill(store, now, now.cells)
  // What a notebook was saved with is as old as it says, and not of a clock that is ahead.
  if (Date.now() - 1000 * now.at > SILENT_MS) { store.heard = 1000 * now.at; store.skew = 0 }
  STORES.set(now.key, store)
  model.on('msg:custom', (message, buffers) => take(store, model, message, buffers))
  ask(model, { do: 'hello', n: store.n })
  return store
}

// A kernel that is gone can't be asked, and the view says so by itself.
function ask(model, message) {
  try { model.send(message) } catch { /* it has no comm any more */ }
}

function bytes(view) {
  if (!view) return new Uint8Array(0)
  const buffer = view.buffer || view
  return new Uint8Array(buffer.slice(view.byteOffset || 0, (view.byteOffset || 0) + view.byteLength))
}

function fill(store, now, cells) {
  Object.assign(store, { n: now.n, state: now.state, rows: now.lines, total: now.total, cleared: now.cleared || 0, cells: bytes(cells) })
  hear(store, now.at)
}

function hear(store, at) {
  store.heard = Date.now()
  // Clocks that differ by less than a message takes are the same clock.
  const skew = store.heard / 1000 - at
  store.skew = Math.abs(skew) > 2 ? skew : 0
}

function take(store, model, message, buffers) {
  if (message.key !== store.key) return
  const changed = { lines: new Set(), cells: [], all: false, member: false }
  if (message.member) {
    if (store.members.size > 500) store.members.clear()
    store.members.set(message.member.index, { ...message.member, at: Date.now() })
    changed.member = true
  }
  else if (message.all) { fill(store, message, buffers[0]); changed.all = true }
  else {
    if (message.n > store.n + 1 && Date.now() - store.asked > 1000) {
      store.asked = Date.now()
      ask(model, { do: 'missed', n: store.n })
    }
    store.n = message.n
    hear(store, message.at)
    if (message.state) { store.state = { ...store.state, ...message.state }; changed.state = true }
    if (message.cleared) {
      store.cleared = message.cleared
      store.total = message.total
      store.rows = store.rows.filter(row => row[0] >= store.cleared)
      changed.all = true
    }
    if (message.lines) { store.total = message.total; for (const row of message.lines) addRow(store, row, changed.lines) }
    if (message.cells === 0) { store.cells = bytes(buffers[0]); changed.all = true }
    for (let i = 0; message.runs && i < message.runs.length; i += 3) {
      const [start, length, mark] = message.runs.slice(i, i + 3)
      store.cells.fill(mark, start, start + length)
      changed.cells.push([start, length])
    }
  }
  for (const view of store.views) view(changed)
}

// Rows are [number, when, of an error stream, text], in order; a line that was overwritten comes again.
function addRow(store, row, changed) {
  const rows = store.rows
  if (!rows.length || row[0] > rows[rows.length - 1][0]) {
    rows.push(row)
    if (rows.length > KEPT_LINES) rows.shift()
  } else {
    let low = 0, high = rows.length - 1
    while (low < high) { const middle = (low + high) >> 1; if (rows[middle][0] < row[0]) low = middle + 1; else high = middle }
    if (rows[low][0] !== row[0]) return
    rows[low] = row
  }
  changed.add(row[0])
}

// ---- text with terminal colours

const COLOURS = { 31: 'red', 32: 'green', 33: 'yellow', 34: 'blue', 35: 'magenta', 36: 'cyan', 90: 'grey', 91: 'red', 92: 'green', 93: 'yellow', 94: 'blue', 95: 'magenta', 96: 'cyan' }

// A line with its terminal colours and what is searched for marked; nothing in it is ever markup.
function coloured(node, line, sought) {
  if (!sought && !line.includes('\x1b[')) { node.textContent = line; return }
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
      const target = colour || bold ? make('span', colour ? 'ansi-' + colour : 'ansi') : node
      if (bold) target.style.fontWeight = '600'
      marked(target, part, sought)
      if (target !== node) node.append(target)
    }
  }
}

function marked(node, text, sought) {
  const low = text.toLowerCase()
  let from = 0
  for (let at = sought ? low.indexOf(sought) : -1; at >= 0; at = low.indexOf(sought, from)) {
    node.append(text.slice(from, at), make('mark', 'hit', text.slice(at, at + sought.length)))
    from = at + sought.length
  }
  node.append(text.slice(from))
}

const plain = line => line.replace(/\x1b\[[0-9;:]*m/g, '')

// ---- bars

// Rows are kept while their bar is: what is rebuilt ten times a second can't be read aloud, nor move.
function Bars() {
  const node = make('div', 'bars'), rows = new Map(), more = make('div', 'caption')

  // What was closed before its end didn't get there: it keeps its track.
  const isDone = bar => bar.closed && (!bar.total || bar.done >= bar.total)
  const keyOf = bar => `${bar.number}:${isDone(bar)}`

  function row(bar) {
    const made = { node: make('div', isDone(bar) ? 'bar-done' : 'bar'), label: make('span', bar.nested ? 'label-nested' : 'label'),
      track: make('span', 'track'), ink: make('span', 'ink'), percent: make('span', 'percent'), numbers: make('span', 'numbers') }
    if (isDone(bar)) made.node.append(icon('succeeded'), made.label, made.numbers)
    else {
      made.track.append(made.ink)
      made.track.setAttribute('role', 'progressbar')
      made.node.append(made.label, made.track, made.percent, made.numbers)
    }
    return made
  }

  function draw(s) {
    const bars = s.bars || [], kept = new Set(bars.map(keyOf))
    for (const [key, { node: gone }] of rows) if (!kept.has(key)) { gone.remove(); rows.delete(key) }
    bars.forEach((bar, place) => {
      const key = keyOf(bar)
      if (!rows.has(key)) rows.set(key, row(bar))
      const at = rows.get(key)
      put(node, at.node, place)
      say(at.label, bar.label)
      set(at.label, 'title', bar.label)
      const unit = bar.unit && bar.unit !== 'B' ? ' ' + bar.unit : '', note = bar.note ? ` · ${bar.note}` : ''
      const total = (bar.total ? ' / ' + amount(bar.total, bar.unit) : '') + unit, gone = bar.at - bar.started
      if (isDone(bar)) { say(at.numbers, `${amount(bar.done, bar.unit)}${total} in ${clock(gone)}${note}`); return }
      const share = bar.total ? Math.min(1, bar.done / bar.total) : 0, each = bar.rate ? 1 / bar.rate : bar.done > 0 ? gone / bar.done : 0
      at.ink.style.width = (100 * share) + '%'
      set(at.track, 'aria-label', bar.label)
      if (bar.total) { set(at.track, 'aria-valuemax', bar.total); set(at.track, 'aria-valuenow', bar.done) }
      set(at.track, 'aria-valuetext', `${count(bar.done)} of ${bar.total ? count(bar.total) : 'unknown'}`)
      say(at.percent, bar.total ? Math.floor(100 * share) + ' %' : '')
      at.ink.classList.toggle('nbq-stopped', bar.closed)
      const pace = each && gone > 1 && !bar.closed ? each >= 1 ? ` · ${clock(each)} each` : ` · ${count(Math.round(10 / each) / 10)} /s` : ''
      const left = each && bar.total && bar.done < bar.total && !bar.closed ? ` · ${clock(each * (bar.total - bar.done))} left` : ''
      const done = amount(bar.done, bar.unit), numbers = `${done}${total}${pace}${left}${note}`
      if (at.numbers.textContent !== numbers) at.numbers.replaceChildren(`${done}${total}`, make('span', 'pace', pace), left, note)
    })
    if (s.more) { put(node, more, bars.length); say(more, `+ ${many(s.more, 'more bar')}`) }
    else more.remove()
  }

  return { node, draw }
}

// ---- errors

// The error, the frame of the reader's own code that it came from, and all else folded.
function Failure() {
  const node = make('div', 'error'), text = make('div', 'error-text'), code = make('code')
  let shown
  text.append(code)

  function frame(f) {
    const box = make('div', 'frame'), cap = make('div', 'cap')
    cap.append(make('b', '', f.title), make('span', '', `line ${f.line}${f.name ? `, in ${f.name}` : ''}`))
    box.append(cap)
    for (const [number, source] of f.code) {
      const row = make('div', number === f.line ? 'source-hit' : 'source'), shown = make('span', 'source-text')
      row.append(make('span', 'source-number', number), make('span', 'source-sign', number === f.line ? '▶' : ''), shown)
      if (number === f.line && f.marks) {
        const [from, to] = f.marks
        shown.append(source.slice(0, from), make('mark', 'spot', source.slice(from, to)), source.slice(to))
      } else shown.textContent = source
      box.append(row)
    }
    return box
  }

  function draw(s) {
    const key = JSON.stringify([s.error, s.failure, s.kind === 'retrying' && s.attempt])
    if (key === shown) return
    shown = key
    const wasOpen = node.querySelector('details')?.open
    node.replaceChildren()
    if (!s.error || s.kind === 'cancelled') return
    const [, type, message] = /^([\w.]+): ([^]*)$/.exec(s.error) || [null, '', s.error]
    code.replaceChildren()
    if (type) code.append(make('b', 'error-type', type), ': ')
    code.append(message)
    text.replaceChildren(...(s.kind === 'retrying' ? [`Attempt ${s.attempt} failed${s.told > s.started ? ` after ${clock(s.told - s.started)}` : ''}: `] : []), code)
    node.append(text)
    if (!s.failure) return
    for (const f of s.failure.frames) node.append(frame(f))
    const all = make('details'), trace = make('pre', 'traceback', s.failure.text)
    trace.tabIndex = 0
    trace.setAttribute('data-lm-suppress-shortcuts', 'true')
    all.append(make('summary', '', s.failure.folded), trace)
    all.open = wasOpen || !s.failure.frames.length
    node.append(all)
  }

  return { node, draw }
}

// ---- log

function Log(store, leave) {
  const node = make('div', 'logbox'), bar = make('div', 'logbar'), log = make('pre', 'log'), lines = new Map()
  const total = make('span', 'numbers'), following = button('plain', 'pause', 'Following', ''), wrap = button('tool', 'wrap', '', 'Wrap long lines')
  const find = button('tool', 'search', '', 'Search the log'), field = make('span', 'field'), input = document.createElement('input'), hits = make('span', 'numbers')
  let follow = true, unseen = 0, seen = 0, sought = '', found = -1, selfScrolled = false
  input.type = 'search'
  input.placeholder = 'Search'
  input.className = 'nbq-search'
  input.setAttribute('aria-label', 'Search the log')
  field.hidden = true
  field.append(input, hits)
  bar.append(make('span', 'title', 'Log'), total, field, make('span', 'space'), following, find, wrap)
  wrap.setAttribute('aria-pressed', 'true')
  log.tabIndex = 0
  log.setAttribute('role', 'log')
  log.setAttribute('aria-live', 'off')
  log.setAttribute('aria-label', 'Log')
  for (const place of [log, input]) place.setAttribute('data-lm-suppress-shortcuts', 'true')
  node.append(bar, log)

  const toEnd = () => { selfScrolled = true; log.scrollTop = log.scrollHeight }

  function pause(yes) {
    follow = !yes
    if (follow) { unseen = 0; toEnd() }
    following.classList.toggle('nbq-main', !follow && unseen > 0)
    following.querySelector('.nbq-icon').innerHTML = svg(ICONS[follow ? 'pause' : 'down'])
    say(following.querySelector('.nbq-word'), follow ? 'Following' : unseen ? many(unseen, 'new line') : 'Paused')
    set(following, 'title', follow ? 'Stay here (Space, or scroll up)' : 'Go to the end and follow (End)')
  }
  following.onclick = () => pause(follow)
  log.onscroll = () => {
    // A scroll to the end that was done here is no wish of the reader's.
    if (selfScrolled) { selfScrolled = false; return }
    const end = log.scrollHeight - log.scrollTop - log.clientHeight < 4
    if (end !== follow) pause(!end)
  }
  log.onkeydown = event => {
    const keys = {
      ' ': () => pause(follow), End: () => pause(false), '/': look, w: () => wrap.click(), W: () => wrap.click(),
      n: () => go(1), N: () => go(-1), Escape: () => leave(log),
    }
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return
    event.preventDefault()
    event.stopPropagation()
    keys[event.key]()
  }
  wrap.onclick = () => set(wrap, 'aria-pressed', !log.classList.toggle('nbq-nowrap'))
  find.onclick = () => field.hidden ? look() : hide()
  input.oninput = () => { sought = input.value.toLowerCase(); found = -1; redraw(); go(-1) }
  input.onkeydown = event => {
    event.stopPropagation()
    if (event.key === 'Enter') go(event.shiftKey ? 1 : -1)
    else if (event.key === 'Escape') { hide(); log.focus() }
  }

  function look() { show(true); input.focus(); input.select() }
  function hide() { show(false); input.value = sought = ''; redraw() }
  function show(yes) { field.hidden = !yes; bar.classList.toggle('nbq-searching', yes); set(find, 'aria-pressed', yes) }

  // From the newest hit backwards: what was just printed is what is looked for.
  function go(by) {
    const all = [...log.querySelectorAll('.nbq-hit')]
    if (all.length) {
      found = found < 0 || found >= all.length ? all.length - 1 : (found + by + all.length) % all.length
      pause(true)
      log.scrollTop += all[found].getBoundingClientRect().top - log.getBoundingClientRect().top - log.clientHeight / 2
    }
    all.forEach((hit, n) => hit.classList.toggle('nbq-found', n === found))
    say(hits, sought ? all.length ? `${count(found + 1)} of ${count(all.length)}` : 'none' : '')
  }

  function since(at) {
    const start = store.state.started || store.state.sent
    return start && at >= start ? clock(Math.floor(at - start)).replace(/^(\d)\.\d s$/, '0:0$1') : ''
  }

  function line(row, before) {
    let at = lines.get(row[0])
    if (!at) {
      at = make('div', row[2] ? 'line-err' : 'line')
      at.dataset.at = since(row[1])
      lines.set(row[0], at)
      if (before !== undefined && row[0] > before + 1) log.append(make('div', 'skipped', `${many(row[0] - before - 1, 'line')} skipped here`))
      log.append(at)
    }
    coloured(at, row[3], sought)
  }

  function redraw() {
    lines.clear()
    log.replaceChildren()
    store.rows.forEach((row, n) => line(row, n ? store.rows[n - 1][0] : undefined))
    if (follow) toEnd()
  }

  // Only lines that changed are touched.
  function draw(changed) {
    const rows = store.rows
    node.hidden = !rows.length
    say(total, many(store.total - store.cleared, 'line'))
    if (changed === null) redraw()
    else {
      let n = rows.length
      while (n > 0 && changed.has(rows[n - 1][0])) n--
      for (let i = 0; i < n && changed.size > rows.length - n; i++) if (changed.has(rows[i][0])) line(rows[i])
      for (let i = n; i < rows.length; i++) line(rows[i], i ? rows[i - 1][0] : undefined)
      const first = rows.length ? rows[0][0] : 0
      while (log.firstChild && lines.get(first) !== log.firstChild) log.firstChild.remove()
      if (lines.size > rows.length) for (const number of lines.keys()) { if (number >= first) break; lines.delete(number) }
    }
    if (sought) { const all = log.querySelectorAll('.nbq-hit').length; say(hits, all ? `${count(found + 1)} of ${count(all)}` : 'none') }
    if (follow) toEnd()
    else { unseen += Math.max(0, store.total - seen); pause(true) }
    seen = store.total
  }

  return { node, draw }
}

// ---- maps

function Marks(store, model, leave, retry) {
  const bars = make('div', 'bars'), strip = make('div', 'strip'), legend = make('div', 'legend'), share = make('span', 'numbers')
  const grid = make('div', 'grid'), canvas = make('canvas', 'canvas'), caption = make('div', 'caption'), tip = make('div', 'tip'), hot = make('div', 'hot')
  const ends = [make('span'), make('span'), make('span')]
  const errors = make('div', 'kinds'), head = make('div', 'kinds-head'), said = make('span'), all = button('button', 'retrying', 'Retry all', ''), parts = new Map(), kinds = new Map()
  let fit = null, at = -1, only = -1, dark = false, flags = new Set(), asking = null
  bars.append(strip, legend)
  for (const [n, word] of LEGEND) {
    const part = make('span', n ? 'part' : 'rest'), item = make('button', 'count'), number = make('b')
    part.dataset.kind = item.dataset.kind = MEMBERS[n]
    item.type = 'button'
    item.append(icon(MEMBERS[n]), number, ' ' + word)
    item.onclick = () => { only = only === n ? -1 : n; draw(null) }
    strip.append(part)
    legend.append(item)
    parts.set(n, { part, item, number, word })
  }
  legend.append(make('span', 'space'), share)
  canvas.setAttribute('role', 'img')
  canvas.tabIndex = 0
  canvas.setAttribute('data-lm-suppress-shortcuts', 'true')
  tip.hidden = hot.hidden = true
  caption.append(...ends)
  grid.append(canvas, hot, tip, caption)
  head.append(said, make('span', 'space'), all)
  errors.append(head)

  // Answers at once; what comes of it is seen in the marks, or said in the note.
  function again(at, like) {
    for (const one of errors.querySelectorAll('button')) one.disabled = true
    say(at.querySelector('.nbq-word'), 'Sending…')
    retry(at, like)
    setTimeout(() => draw([]), 3000)
  }
  all.onclick = () => again(all, -1)

  canvas.onmousemove = event => {
    const box = canvas.getBoundingClientRect(), x = Math.floor((event.clientX - box.left) / fit.pitch), y = Math.floor((event.clientY - box.top) / fit.pitch)
    point(x < fit.across ? y * fit.across + x : -1)
  }
  canvas.onmouseleave = () => { if (document.activeElement !== canvas) point(-1) }
  canvas.onblur = () => point(-1)
  canvas.onkeydown = event => {
    const cells = fit.cells, steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: fit.across, ArrowUp: -fit.across }
    let to
    if (steps[event.key]) to = at < 0 ? 0 : Math.min(cells - 1, Math.max(0, at + steps[event.key]))
    else if (event.key === 'Home') to = 0
    else if (event.key === 'End') to = cells - 1
    else if (event.key === 'f' || event.key === 'F') to = nextFailure()
    else if (event.key === 'Escape') { event.stopPropagation(); event.preventDefault(); at < 0 ? leave(canvas) : point(-1); return }
    else return
    event.preventDefault()
    event.stopPropagation()
    tip.setAttribute('aria-live', 'polite')
    point(to)
  }

  function nextFailure() {
    for (let i = 1; i <= fit.cells; i++) { const to = (Math.max(at, -1) + i) % fit.cells; if (kindOf(to) === 3) return to }
    return at
  }

  // The worst of the marks that a cell stands for.
  function kindOf(cell) {
    const end = Math.min(store.cells.length, (cell + 1) * fit.merge)
    let kind = store.cells[cell * fit.merge]
    for (let i = cell * fit.merge + 1; i < end; i++) if (RANK[store.cells[i]] < RANK[kind]) kind = store.cells[i]
    return kind
  }

  // The largest cells that keep the grid low; past that, tasks share cells.
  function measure(width) {
    const n = store.cells.length, room = width - GUTTER
    const pitch = PITCHES.find(p => Math.ceil(n / Math.floor(room / p)) * p <= (p > 8 ? 100 : 200)) || 4
    const across = Math.max(1, Math.floor(room / pitch)), most = across * Math.floor(200 / pitch)
    const merge = MERGES.find(m => n / m <= most) || Math.ceil(n / most)
    return { width, pitch, across, merge, cells: Math.ceil(n / merge), high: Math.ceil(n / merge / across) * pitch }
  }

  function drawStrip(s) {
    for (const [n, { part, item, number, word }] of parts) {
      part.style.flexGrow = s.counts[n]
      part.hidden = item.hidden = !s.counts[n]
      say(number, count(s.counts[n]))
      set(item, 'aria-pressed', only === n)
      set(item, 'title', only === n ? 'Show all marks' : `Show only what is ${word}`)
    }
    const ended = s.total ? 100 * (s.done + s.failed + s.counts[5]) / s.total : 100
    say(share, (Math.floor(10 * ended) / 10).toFixed(1) + ' %')
  }

  function drawKinds(s) {
    errors.hidden = !s.kinds.length
    if (errors.contains(document.activeElement) && !s.kinds.length) canvas.focus()
    say(all.querySelector('.nbq-word'), `Retry all ${count(s.failed)}`)
    all.disabled = false
    said.replaceChildren(make('b', '', `${count(s.failed)} failed`), ` ${many(s.kindCount, 'kind')} of error${s.kindCount > s.kinds.length ? `, the first ${s.kinds.length} here` : ''}`)
    const now = new Set(s.kinds.map(kind => kind.text))
    for (const [text, row] of kinds) if (!now.has(text)) { row.node.remove(); kinds.delete(text) }
    s.kinds.forEach((kind, place) => {
      let row = kinds.get(kind.text)
      if (!row) {
        const text = make('code', 'kind-text'), [, type, message] = /^([\w.]+): ([^]*)$/.exec(kind.text) || [null, kind.text, '']
        row = { node: make('div', 'kind'), number: make('b'), where: make('span', 'where-strip'), first: make('span', 'numbers'), again: button('plain', '', 'Retry', '') }
        row.again.onclick = () => again(row.again, row.like)
        text.append(make('b', 'error-type', type), message ? ': ' + message : '')
        text.title = kind.text
        row.where.setAttribute('role', 'img')
        row.node.append(icon('failed'), row.number, text, row.where, row.first, row.again)
        kinds.set(kind.text, row)
      }
      put(errors, row.node, place + 1)
      say(row.number, count(kind.count))
      say(row.first, 'first #' + count(kind.first))
      row.like = kind.first
      say(row.again.querySelector('.nbq-word'), `Retry ${count(kind.count)}`)
      row.again.disabled = false
      row.again.hidden = s.kindCount === 1
      const spots = kind.where.join()
      if (row.spots !== spots) {
        row.spots = spots
        row.where.setAttribute('aria-label', `where in the map: ${kind.where.map(n => Math.floor(100 * n / s.bins) + ' %').slice(0, 8).join(', ')}`)
        row.where.title = 'Where in the map'
        row.where.replaceChildren(...kind.where.map(n => { const spot = make('i'); spot.style.left = `${100 * n / s.bins}%`; spot.style.width = `${100 / s.bins}%`; return spot }))
      }
    })
  }

  function drawGrid(s, runs) {
    const n = store.cells.length, scale = window.devicePixelRatio || 1
    grid.hidden = !n
    if (!n || !grid.isConnected) return
    const width = Math.max(100, grid.clientWidth), key = `${n} ${width} ${dark} ${only} ${scale}`
    const whole = !runs || !fit || fit.key !== key
    if (whole) {
      fit = { key, ...measure(width) }
      canvas.width = fit.width * scale
      canvas.height = fit.high * scale
      canvas.style.height = fit.high + 'px'
      flags = new Set()
    }
    set(canvas, 'aria-label', `${s.done} done, ${s.failed} failed of ${s.total}`)
    const step = s.step * fit.merge
    say(ends[0], '0')
    say(ends[1], step > 1 ? `one cell = ${count(step)} tasks; one failure marks the cell` : 'one cell a task, in call order')
    say(ends[2], count(s.total - 1))
    const pen = canvas.getContext('2d')
    pen.setTransform(scale, 0, 0, scale, 0, 0)
    if (whole) { for (let i = 0; i < fit.cells; i++) paint(pen, i) }
    else for (const [start, length] of runs) {
      const last = Math.floor((start + length - 1) / fit.merge)
      for (let i = Math.floor(start / fit.merge); i <= last; i++) paint(pen, i)
    }
    if (at >= fit.cells) point(-1)
    else if (at >= 0) { drawTip(); wonder() }
  }

  // Ink grows as work gets done: dot, ring, square. What is not done as it should be has a mark of its own.
  function paint(pen, i) {
    const { pitch, across } = fit, kind = kindOf(i), row = Math.floor(i / across), x = (i % across) * pitch, y = row * pitch
    const size = pitch - (pitch >= 9 ? 2 : 1), paper = dark ? '#111' : '#fff', ink = INK[dark ? 'dark' : 'light']
    pen.clearRect(x, y, pitch, pitch)
    pen.globalAlpha = (only < 0 || only === kind ? 1 : 0.15) * (kind === 2 ? dark ? 0.82 : 0.72 : kind === 0 ? 0.75 : 1)
    pen.fillStyle = pen.strokeStyle = ink[kind]
    if (kind === 0) { const dot = pitch >= 9 ? 3 : pitch >= 5 ? 2 : 1; pen.fillRect(x + (size - dot) / 2, y + (size - dot) / 2, dot, dot) }
    else if (kind === 1 && pitch >= 5) {
      const wide = pen.lineWidth = pitch >= 9 ? 2 : 1.4
      pen.strokeRect(x + wide / 2, y + wide / 2, size - wide, size - wide)
    } else if (kind === 5) {
      pen.lineWidth = pitch >= 9 ? 1.8 : 1.2
      line(pen, x + 1, y + size - 1, x + size - 1, y + 1)
      if (pitch >= 9) { pen.lineWidth = 1; pen.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1) }
    } else pen.fillRect(x, y, size, size)
    pen.strokeStyle = pen.fillStyle = paper
    pen.lineWidth = pitch >= 9 ? 1.6 : 1.1
    const a = size * 0.27, b = size * 0.73
    if (kind === 3 && pitch >= 6) { line(pen, x + a, y + a, x + b, y + b); line(pen, x + b, y + a, x + a, y + b) }
    else if (kind === 4 && pitch >= 6) { pen.beginPath(); pen.arc(x + size / 2, y + size / 2, size * 0.2, 0, 7); pen.fill() }
    else if (kind === 6 && pitch >= 6) pen.fillRect(x + size * 0.42, y, size * 0.16, size)
    pen.globalAlpha = 1
    if (kind !== 3 || flags.has(row)) return
    // A row with a failure carries a flag, so that none is overlooked.
    flags.add(row)
    const left = across * pitch + 3, middle = y + size / 2, high = Math.max(2.2, Math.min(4, size / 2))
    pen.fillStyle = ink[3]
    pen.beginPath()
    pen.moveTo(left, middle)
    pen.lineTo(left + 1.5 * high, middle - high)
    pen.lineTo(left + 1.5 * high, middle + high)
    pen.fill()
  }

  function line(pen, x0, y0, x1, y1) {
    pen.beginPath()
    pen.moveTo(x0, y0)
    pen.lineTo(x1, y1)
    pen.stroke()
  }

  // The member that a cell is about: the first that is as bad as the cell.
  function memberOf(cell) {
    const kind = kindOf(cell), start = cell * fit.merge
    for (let i = start; i < start + fit.merge; i++) if (store.cells[i] === kind) return i * store.state.step
    return start * store.state.step
  }

  function point(cell) {
    const to = cell >= 0 && fit && cell < fit.cells ? cell : -1
    if (to === at && to >= 0) return
    at = to
    clearTimeout(asking)
    asking = null
    tip.hidden = hot.hidden = at < 0
    if (at < 0) { tip.removeAttribute('aria-live'); return }
    wonder()
    drawTip()
  }

  // The kernel knows more of a member once it has ended. It is asked when the pointer rests.
  function wonder() {
    const index = memberOf(at), known = store.members.get(index)
    if (asking || ![2, 3, 5].includes(kindOf(at))) return
    if (known && (known.worker || Date.now() - known.at < 2000)) return
    asking = setTimeout(() => { asking = null; ask(model, { do: 'member', index }) }, 120)
  }

  function drawTip() {
    if (at < 0) return
    const s = store.state, kind = kindOf(at), step = s.step * fit.merge, start = at * step, last = Math.min(s.total, start + step) - 1
    const index = memberOf(at), known = store.members.get(index), words = make('div', 'tip-line')
    words.dataset.kind = MEMBERS[kind]
    const range = step > 1 ? `#${count(start)} to #${count(last)}` : `#${count(start)}`, one = known?.member ?? (s.step > 1 ? -1 : index)
    words.append(icon(MEMBERS[kind]), make('b', '', one < 0 ? range : `#${count(one)}`), ' ' + WORD[kind])
    if (known?.worker) words.append(` on ${known.worker}`)
    if (typeof known?.took === 'number') words.append(` · ${clock(known.took)}`)
    if (one >= 0 && step > 1) words.append(make('span', 'numbers', ` one of ${range}`))
    tip.replaceChildren(words)
    if (known?.error) tip.append(make('code', 'tip-error', known.error))
    const x = (at % fit.across) * fit.pitch, y = Math.floor(at / fit.across) * fit.pitch
    hot.style.cssText = `left: ${x - 2}px; top: ${canvas.offsetTop + y - 2}px; width: ${fit.pitch + 3}px; height: ${fit.pitch + 3}px`
    const box = tip.getBoundingClientRect(), below = canvas.offsetTop + y + fit.pitch + 6
    tip.style.left = Math.max(0, Math.min(x + 6, fit.width - box.width)) + 'px'
    tip.style.top = (below + box.height > grid.clientHeight + 40 ? Math.max(0, canvas.offsetTop + y - box.height - 6) : below) + 'px'
  }

  function draw(runs) {
    const s = store.state
    dark = isDark()
    drawStrip(s)
    drawKinds(s)
    drawGrid(s, runs)
  }

  return { bars, grid, errors, draw, drawTip, resize: () => drawGrid(store.state, []) }
}

// ---- the view

function render({ model, el }) {
  const store = open(model), isMap = store.state.form === 'map'
  const root = make('div', 'view'), head = make('div', 'head'), chip = make('span', 'chip'), name = make('span', 'name'), where = make('span', 'where'), spark = make('span', 'spark'), line = make('div', 'countdown'), passed = make('i')
  const time = make('span', 'time'), cancel = button('button', 'stop', 'Cancel', ''), again = button('button', 'retrying', 'Retry', ''), copy = button('tool', 'copy', '', 'Copy the id'), fold = button('fold', 'fold', '', 'Collapse')
  const actions = make('span', 'actions'), body = make('div', 'body'), note = make('div', 'note'), said = make('div', 'said')
  root.classList.add('nbq')
  root.setAttribute('role', 'group')
  said.setAttribute('role', 'status')
  actions.append(again, cancel, copy, fold)
  spark.setAttribute('role', 'img')
  spark.hidden = true
  head.append(chip, name, where, make('span', 'space'), spark, time, actions)

  const leave = from => { from.blur(); root.closest('.jp-Notebook')?.focus({ preventScroll: true }) }
  const marks = isMap ? Marks(store, model, leave, retry) : null, bars = isMap ? null : Bars(), failure = isMap ? null : Failure(), log = isMap ? null : Log(store, leave)
  body.append(note, ...(isMap ? [marks.bars, marks.grid, marks.errors] : [bars.node, failure.node, log.node]))
  line.append(passed)
  line.hidden = true
  root.append(head, line, body, said)
  el.append(root)

  let asked = 0, lastKind = '', onScreen = true, frame = 0, waiting = null, lastWord = '', quietUntil = 0, toSay = '', quarter = 0, failed = 0
  let touched = false, active = 0, over = 0, held = false

  // ---- what a reader does

  cancel.onclick = () => {
    const s = store.state
    // A whole map is not cancelled by a slip: the button asks back, for four seconds.
    if (isMap && Date.now() - asked > 4000) {
      asked = Date.now()
      say(cancel.lastChild, `Cancel ${count(s.total - s.done - s.failed - s.counts[5])} tasks?`)
      setTimeout(() => { if (!store.state.cancelling) say(cancel.lastChild, 'Cancel') }, 4000)
      return
    }
    say(cancel.lastChild, 'Cancelling…')
    cancel.disabled = true
    ask(model, { do: 'cancel' })
  }
  again.onclick = () => {
    say(again.lastChild, 'Sending…')
    again.disabled = true
    ask(model, { do: 'retry', like: -1 })
    setTimeout(() => { again.disabled = false; drawHead(store.state) }, 3000)
  }
  // Who has members run again has read enough, even if the pointer stays where it clicked.
  function retry(from, like) {
    ask(model, { do: 'retry', like })
    touched = false
    leave(from)
    hold()
  }
  copy.onclick = () => { navigator.clipboard?.writeText(store.state.id); copy.title = 'Copied'; setTimeout(() => { copy.title = 'Copy the id' }, 2000) }
  function collapse(yes) {
    root.classList.toggle('nbq-folded', yes)
    set(fold, 'aria-label', yes ? 'Expand' : 'Collapse')
    set(fold, 'title', yes ? 'Expand' : 'Collapse')
    set(fold, 'aria-expanded', !yes)
    drawHead(store.state)
    if (!yes) marks?.resize()
  }
  fold.onclick = () => collapse(!root.classList.contains('nbq-folded'))
  actions.onkeydown = event => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key]
    if (!by) return
    const all = [...actions.querySelectorAll('button')].filter(one => !one.hidden && !one.disabled)
    all[(all.indexOf(document.activeElement) + by + all.length) % all.length]?.focus()
    event.preventDefault()
    event.stopPropagation()
  }
  // Somebody who reads here when it ends is left to it; the kernel is told, and waits. Who does nothing has left.
  function hold() {
    const here = body.contains(document.activeElement) || touched && body.matches(':hover')
    const now = here && Date.now() - active < AWAY_MS
    if (now !== held) ask(model, { do: 'hold', on: held = now })
  }
  for (const sign of ['pointerdown', 'wheel', 'keydown']) body.addEventListener(sign, () => { touched = true; active = Date.now(); hold() }, { passive: true })
  for (const sign of ['focusin', 'pointermove']) body.addEventListener(sign, () => { active = Date.now(); hold() })
  for (const sign of ['focusout', 'pointerleave']) body.addEventListener(sign, () => setTimeout(hold, 200))

  // ---- what is drawn

  // One thing at a time is read aloud, and not more than one in ten seconds but for the end.
  function tell(text, now) {
    toSay = text
    if (now) quietUntil = 0
    speak()
  }
  function speak() {
    if (!toSay || Date.now() < quietUntil) return
    quietUntil = Date.now() + QUIET_MS
    say(said, toSay)
    toSay = ''
  }

  const now = () => Date.now() / 1000 - store.skew
  const gone = s => { const end = s.ended || now(); return Math.max(0, end - (s.started || s.sent || end)) }

  function drawHead(s) {
    const folded = root.classList.contains('nbq-folded'), silent = !s.ready && Date.now() - store.heard > SILENT_MS
    const due = s.due && s.due > now() && (s.kind === 'queued' || s.kind === 'retrying') ? s.due : 0
    root.classList.toggle('nbq-dark', isDark())
    root.classList.toggle('nbq-stale', silent)
    root.classList.toggle('nbq-over', s.ready)
    set(root, 'data-kind', s.kind)
    let word = s.word === 'Scheduled' ? due ? `Scheduled ${instant(due)}` : 'Queued' : s.word, sign = s.kind
    if (word.startsWith('Scheduled')) sign = 'scheduled'
    // A kernel that lives is heard every five seconds. A view that isn't live says so, and since when.
    if (silent) { word = `${s.word} at ${new Date(store.heard).toLocaleTimeString()}`; sign = 'scheduled' }
    if (sign + word !== lastWord) {
      lastWord = sign + word
      chip.replaceChildren(icon(sign), word)
      set(chip, 'title', s.state || s.word)
      tell(silent ? `${s.name}: not live` : `${s.name}: ${word}`, s.ready)
    }
    say(name, s.name)
    set(name, 'title', s.name + ' · ' + s.id)
    say(where, folded && s.ready && !isMap ? s.kind === 'cancelled' ? '' : s.error || (s.summary ? '→ ' + s.summary : '') : place(s))
    set(where, 'title', where.textContent)
    set(root, 'aria-label', label(s, word))
    const why = silent ? 'Not live: the kernel does not answer. The task goes on without it; run the cell again to watch it.' : s.note
    say(note, why)
    note.hidden = !why
    drawActions(s, silent)
    line.hidden = !due || s.kind !== 'retrying' || !s.told
    if (!line.hidden) passed.style.width = `${Math.min(100, 100 * (now() - s.told) / (due - s.told))}%`
    drawTime(s, due, silent)
  }

  // One likely thing to do, as a word; while a retry is waited for, two.
  function drawActions(s, silent) {
    const waits = s.kind === 'retrying', failed = s.kind === 'failed' && !isMap
    cancel.hidden = s.ready || silent
    if (s.cancelling) { say(cancel.lastChild, 'Cancelling…'); cancel.disabled = true }
    else if (cancel.disabled) cancel.disabled = false
    if (!s.cancelling && Date.now() - asked > 4000) say(cancel.lastChild, waits ? 'Stop retrying' : 'Cancel')
    if (again.contains(document.activeElement) && !failed && !waits) fold.focus()
    again.hidden = silent || s.cancelling || !(failed || waits)
    again.classList.toggle('nbq-main', failed)
    if (again.disabled && lastKind === s.kind) return
    again.disabled = false
    const sign = waits ? 'play' : 'retrying'
    if (again.dataset.sign !== sign) { again.dataset.sign = sign; again.firstChild.innerHTML = svg(ICONS[sign]) }
    say(again.lastChild, waits ? 'Try now' : 'Retry')
    lastKind = s.kind
  }

  function place(s) {
    if (isMap) {
      const pace = rate(s)
      return `map of ${count(s.total)}${pace ? ` · ${count(pace >= 10 ? Math.round(pace) : pace.toFixed(1))} /s` : ''}`
    }
    const attempt = s.attempt > 1 || s.kind === 'retrying' ? `attempt ${s.attempt + (s.kind === 'retrying' ? 1 : 0)}${s.attempts ? ` of ${s.attempts}` : ''}` : ''
    const here = s.kind === 'retrying' ? [] : s.worker ? [s.worker, s.child ? `child ${s.child}` : ''] : s.ready ? [] : [`queue ${s.queue}`]
    return [...here, attempt].filter(Boolean).join(' · ')
  }

  function label(s, word) {
    if (isMap) return `Map ${s.name}, ${word}, ${count(s.done)} of ${count(s.total)} done, ${count(s.failed)} failed`
    return `Task ${s.name}, ${word}${s.worker ? ` on ${s.worker}` : ''}, ${spoken(gone(s))}`
  }

  const ended = s => s.done + s.failed + s.counts[5]
  // How fast it goes now: over the last ten seconds, once there are as many.
  const paces = [], counted = []
  function rate(s) {
    const took = (s.ended || now()) - (s.started || 0), all = s.started && ended(s) > 2 && took > 0.5 ? ended(s) / took : 0
    if (s.ready || counted.length < 11) return all
    const [then, before] = counted[counted.length - 11], [last, total] = counted[counted.length - 1]
    return total > before ? (total - before) / (last - then) : all
  }
  function sample(s) {
    if (!s.started || s.ready || Date.now() - store.heard > SILENT_MS) return
    counted.push([now(), ended(s)])
    if (counted.length > 12) counted.shift()
    if (counted.length > 1) {
      const [[then, before], [last, total]] = counted.slice(-2)
      paces.push((total - before) / Math.max(0.5, last - then))
      if (paces.length > 60) paces.shift()
    }
    if (paces.length < 8) return
    const most = Math.max(...paces, 1e-9), points = paces.map((pace, n) => `${(64 * n / (paces.length - 1)).toFixed(1)},${(15 - 14 * pace / most).toFixed(1)}`)
    spark.hidden = false
    spark.setAttribute('aria-label', `rate of the last minute, now ${count(Math.round(10 * rate(s)) / 10)} a second`)
    spark.innerHTML = `<svg aria-hidden="true" viewBox="0 0 64 16" width="64" height="16"><path d="M0,16 L${points.join(' ')} L64,16z" fill="currentColor" opacity=".16"/><polyline points="${points.join(' ')}" fill="none" stroke="currentColor" stroke-width="1.2"/></svg>`
  }

  function drawTime(s, due, silent) {
    const strong = make('b'), rest = make('span', 'rest-time'), pace = isMap && !s.ready && !silent ? rate(s) : 0
    if (due) { strong.textContent = s.kind === 'retrying' ? `next in ${countdown(due - now())}` : `starts in ${countdown(due - now())}` }
    else if (pace && ended(s) < s.total) { strong.textContent = countdown((s.total - ended(s)) / pace); rest.textContent = ' left' }
    else {
      strong.textContent = clock(silent ? store.heard / 1000 - store.skew - (s.started || s.sent) : gone(s))
      if (s.ready && s.ended) rest.textContent = ' ' + instant(s.ended + store.skew)
    }
    if (time.textContent !== strong.textContent + rest.textContent) time.replaceChildren(strong, rest)
  }

  function milestones(s) {
    const share = s.total ? Math.floor(4 * ended(s) / s.total) : 0
    if (s.failed && !failed) tell(`${s.name}: first failure, ${s.kinds[0]?.text || ''}`)
    else if (share > quarter && share < 4) tell(`${s.name}: ${25 * share} percent`)
    quarter = Math.max(quarter, share)
    failed = s.failed
  }

  function drawAll(changed) {
    const s = store.state
    if (s.ready && !over) { over = Date.now(); spark.hidden = true }
    if (!s.ready && over) { over = 0; paces.length = counted.length = failed = 0; collapse(false) }
    drawHead(s)
    if (isMap) {
      milestones(s)
      marks.draw(changed.all ? null : changed.cells)
      if (changed.member) marks.drawTip()
      return
    }
    bars.draw(s)
    failure.draw(s)
    if (changed.all || changed.lines.size) log.draw(changed.all ? null : changed.lines)
  }

  // News is drawn with the next frame, all of it at once; off screen and in a hidden tab it waits.
  function news(changed) {
    if (!waiting) waiting = changed
    else {
      waiting = { all: waiting.all || changed.all, member: waiting.member || changed.member, lines: new Set([...waiting.lines, ...changed.lines]), cells: waiting.cells.concat(changed.cells) }
      // what would be more work than all of it
      if (waiting.lines.size > KEPT_LINES || waiting.cells.length > 5000) waiting.all = true
    }
    soon()
  }
  function soon() {
    if (waiting && onScreen && !document.hidden && !frame) frame = requestAnimationFrame(show)
  }
  function show() {
    const changed = waiting
    frame = 0
    waiting = null
    if (changed) drawAll(changed)
  }

  let dark = isDark()
  function tick() {
    speak()
    if (held) hold()
    const lapsed = over && Date.now() - over > LINGER_MS
    if (lapsed && store.state.kind === 'succeeded' && !touched && !held && !root.classList.contains('nbq-folded')) collapse(true)
    if (isMap) sample(store.state)
    if (!root.isConnected || document.hidden || !onScreen) return
    drawHead(store.state)
    // The theme may change while nothing else does.
    if (isDark() !== dark) { dark = !dark; marks?.draw(null) }
  }

  store.views.add(news)
  const seen = new IntersectionObserver(entries => { onScreen = entries[entries.length - 1].isIntersecting; soon() })
  seen.observe(root)
  document.addEventListener('visibilitychange', soon)
  const timer = setInterval(tick, 1000), resized = new ResizeObserver(() => marks?.resize())
  resized.observe(root)
  drawAll({ all: true })
  return () => {
    clearInterval(timer)
    cancelAnimationFrame(frame)
    resized.disconnect()
    seen.disconnect()
    document.removeEventListener('visibilitychange', soon)
    store.views.delete(news)
    if (held) ask(model, { do: 'hold', on: false })
  }
}

function initialize({ model }) {
  const store = open(model)
  return () => STORES.delete(store.key)
}

export default { initialize, render }
