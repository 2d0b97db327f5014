// The panel of what runs by the clock. It asks once a second while it is on screen and is told what has changed;
// everything from elsewhere goes in as text. Rules are read by the kernel, so what is shown is what fires.

const SVG = 'http://www.w3.org/2000/svg'
const SIGNS = {
  clock: ['', '<circle cx="6" cy="6" r="4.8"/><path d="M6 3.2V6l1.9 1.3"/>'],
  paused: ['', '<path d="M4 2.5v7M8 2.5v7" stroke-width="2"/>'],
  problem: ['failed', '<path d="M6 1.2v5.6M6 9.6v.02" stroke-width="2"/>'],
  lead: ['', '<path d="M1.3 3.2 3.5 5.4 6 1.6l2.5 3.8 2.2-2.2-.9 6.4H2.2z" fill="currentColor" stroke-width="1"/>'],
  plus: ['', '<path d="M6 2v8M2 6h8"/>'],
  play: ['', '<path d="M3.5 2v8l6-4z" fill="currentColor"/>'],
  edit: ['', '<path d="M8.2 1.8l2 2L4 10l-2.6.6L2 8z"/>'],
  bin: ['', '<path d="M1.8 3h8.4M4.5 3V1.5h3V3M3 3l.5 7.5h5L9 3"/>'],
  more: ['', '<g fill="currentColor" stroke="none"><circle cx="2" cy="6" r="1.1"/><circle cx="6" cy="6" r="1.1"/><circle cx="10" cy="6" r="1.1"/></g>'],
  succeeded: ['succeeded', '<path d="M2 6.4l2.6 2.6L10 3.2" stroke-width="1.8"/>'],
  failed: ['failed', '<circle cx="6" cy="6" r="5.4" fill="currentColor" stroke="none"/><path class="nbq-cutout" d="M4 4l4 4M8 4L4 8"/>'],
  retrying: ['retrying', '<path d="M10.4 6A4.4 4.4 0 1 1 8.9 2.7"/><path d="M9.4.4v2.6H6.8"/>'],
  running: ['running', '<circle cx="6" cy="6" r="4.6" opacity=".35"/><path class="nbq-turning" d="M6 1.4A4.6 4.6 0 0 1 10.6 6" stroke-width="1.8"/><circle cx="6" cy="6" r="1.5" fill="currentColor" stroke="none"/>'],
  queued: ['queued', '<circle cx="6" cy="6" r="4.6" stroke-dasharray="2.4 2"/>'],
  cancelled: ['cancelled', '<circle cx="6" cy="6" r="4.6"/><path d="M3 9l6-6"/>'],
  missed: ['queued', '<path d="M2 9.5h8" stroke-dasharray="2 1.6" stroke-width="2"/>'],
  unknown: ['queued', '<path d="M3 9.5h6" stroke-width="2"/>'],
}
const WORDS = { succeeded: 'done', failed: 'failed', retrying: 'retrying', running: 'running', queued: 'queued', cancelled: 'cancelled',
  missed: 'missed', unknown: 'not kept any more' }
const POLICIES = [['coalesce', 'Run once'], ['skip', 'Skip'], ['all', 'Run all']]
const COLUMNS = [['', ''], ['Task', ''], ['Runs', 'c-rule'], ['Next', 'c-next number'], ['', ''], ['Last 30 runs', 'c-strip'],
  ['Last took', 'c-took number'], ['', '']]
const ASK_MS = 1000
const SILENT_S = 8
const UNDO_MS = 10000
const TOLD_MS = 6000

function make(tag, names, text) {
  const node = document.createElement(tag)
  for (const name of (names || '').split(' ')) if (name) node.classList.add('nbq-' + name)
  if (text !== undefined) node.textContent = text
  if (tag === 'button' || tag === 'input') ownKeys(node)
  return node
}

// Else JupyterLab takes X for cutting the cell; it looks at what has the focus first, so this has to stand there.
function ownKeys(node) {
  node.setAttribute('data-lm-suppress-shortcuts', 'true')
  return node
}

function sign(name) {
  const [kind, path] = SIGNS[name]
  const box = make('span', 'sign')
  if (kind) box.dataset.kind = kind
  box.setAttribute('aria-hidden', 'true')
  box.innerHTML = `<svg viewBox="0 0 12 12" width="12" height="12">${path}</svg>`
  return box
}

function button(names, text, label, act, icon) {
  const made = make('button', names)
  made.type = 'button'
  if (icon) made.append(sign(icon))
  if (text) made.append(document.createTextNode(text))
  if (label) {
    made.title = label
    made.setAttribute('aria-label', label)
  }
  made.onclick = act
  return made
}

const two = n => String(n).padStart(2, '0')
const count = n => Number(n).toLocaleString('en-US')

function clock(seconds) {
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`
  const s = Math.floor(seconds)
  if (s < 3600) return `${Math.floor(s / 60)}:${two(s % 60)}`
  if (s < 86400) return `${Math.floor(s / 3600)}:${two(Math.floor(s % 3600 / 60))}:${two(s % 60)}`
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`
}

function left(seconds) {
  const s = Math.ceil(seconds)
  if (s <= 0) return 'due'
  if (s < 60) return `in ${s} s`
  if (s < 3600) return `in ${Math.floor(s / 60)} m ${s % 60} s`
  if (s < 86400) return `in ${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} m`
  if (s < 172800) return `in 1 d ${Math.floor((s - 86400) / 3600)} h`
  return `in ${Math.floor(s / 86400)} days`
}

// A clock time of the reader's; the day only where it is another.
function at(unix, withSeconds) {
  const then = new Date(unix * 1000), now = new Date()
  const time = `${two(then.getHours())}:${two(then.getMinutes())}${withSeconds ? ':' + two(then.getSeconds()) : ''}`
  const days = Math.round((new Date(then).setHours(0, 0, 0, 0) - new Date(now).setHours(0, 0, 0, 0)) / 864e5)
  if (!days) return time
  if (days > -7 && days < 7) return `${then.toLocaleDateString('en-GB', { weekday: 'short' })} ${time}`
  return `${then.getDate()} ${then.toLocaleDateString('en-GB', { month: 'short' })} ${time}`
}

function ownZone() {
  try { return Intl.DateTimeFormat().resolvedOptions().timeZone || '' } catch { return '' }
}

function isDark() {
  const lab = document.querySelector('[data-jp-theme-light]')
  if (lab) return lab.getAttribute('data-jp-theme-light') === 'false'
  if (document.querySelector('.vscode-dark') || document.documentElement.getAttribute('theme') === 'dark') return true
  return matchMedia('(prefers-color-scheme: dark)').matches
}

// Height is how long a run took, colour and shape how it ended.
function strip(entry) {
  const runs = entry.runs, high = 22, wide = 119
  const svg = document.createElementNS(SVG, 'svg')
  for (const [name, value] of [['width', wide], ['height', high], ['viewBox', `0 0 ${wide} ${high}`], ['aria-hidden', 'true']]) svg.setAttribute(name, value)
  const longest = Math.max(0.001, ...runs.map(run => run.took || 0))
  const part = (tag, all) => {
    const node = document.createElementNS(SVG, tag)
    for (const name in all) node.setAttribute(name, all[name])
    return node
  }
  runs.forEach((run, n) => {
    const x = wide + 1 - 4 * (runs.length - n), tall = run.took === null || run.took === undefined ? 8 : Math.max(3, Math.round(15 * run.took / longest))
    const group = document.createElementNS(SVG, 'g'), title = document.createElementNS(SVG, 'title')
    title.textContent = about(run)
    group.append(title)
    group.dataset.is = run.is
    const box = { x, y: high - tall, width: 3, height: tall }
    if (run.is === 'missed') group.append(part('path', { d: `M${x} ${high - 1}h3`, stroke: 'var(--queued-f)', 'stroke-width': 2, 'stroke-dasharray': '1.2 .8' }))
    else if (run.is === 'unknown') group.append(part('rect', { ...box, y: high - 3, height: 3, fill: 'var(--queued-f)', opacity: 0.5 }))
    else if (run.is === 'running' || run.is === 'queued') group.append(part('rect', { x: x + 0.6, y: high - tall, width: 1.8, height: tall - 0.6, fill: 'none', stroke: `var(--${run.is}-f)`, 'stroke-width': 1.2 }))
    else {
      group.append(part('rect', { ...box, fill: `var(--${run.is}-f)`, opacity: run.is === 'succeeded' ? 0.8 : 1 }))
      if (run.is === 'failed') group.append(part('path', { d: `M${x} ${high - tall - 5}l3 3M${x + 3} ${high - tall - 5}l-3 3`, stroke: 'var(--failed-t)', 'stroke-width': 1.1 }))
      if (run.is === 'retrying') group.append(part('circle', { cx: x + 1.5, cy: high - tall - 3, r: 1.4, fill: 'var(--retrying-t)' }))
    }
    svg.append(group)
  })
  return svg
}

function about(run) {
  const when = at(run.due, true)
  if (run.is === 'missed') return `${count(run.missed)} missed up to ${when}`
  const took = run.took === null || run.took === undefined ? '' : ` after ${clock(run.took)}`
  return `${when}${run.hand ? ', by hand' : ''}: ${WORDS[run.is]}${took}`
}

function render({ model, el }) {
  // To a kernel that has ended nothing can be sent; that it is silent is said by the clock.
  const tellKernel = message => { try { model.send(message) } catch { /* it is gone */ } }
  const root = make('div', 'panel beat')
  root.classList.add('nbq')
  root.setAttribute('role', 'group')
  root.setAttribute('aria-label', 'Beat')
  const top = make('div', 'top'), lead = make('span', 'lead'), sum = make('span', 'sum wide')
  const add = button('button main', 'Add', 'Add a schedule (N)', () => openForm(null), 'plus')
  top.append(make('span', 'title', 'Beat'), lead, make('span', 'space'), sum, add)
  const note = make('div', 'note'), told = make('div', 'note told'), said = make('div', 'said')
  said.setAttribute('role', 'status')
  const table = make('table', 'fleet'), head = document.createElement('thead'), body = document.createElement('tbody')
  const names = document.createElement('tr')
  for (const [text, classes] of COLUMNS) names.append(make('th', classes, text))
  head.append(names)
  table.append(head, body)
  const empty = make('div', 'empty'), more = make('div', 'note'), place = make('div', 'form')
  place.hidden = true
  root.append(top, note, told, table, empty, more, place, said)
  el.append(root)

  const known = new Map() // name of an entry -> what its rows were drawn of, and the rows
  const open = new Set() // entries whose runs are shown
  const gone = new Map() // name of an entry that was deleted here -> until when it can be had back, and whether it is gone
  const s = { n: 0, entries: [], more: 0, leader: null, led_at: 0, embedded: true } // what is known of the schedule
  let onScreen = true, answered = Date.now(), ahead = 0, trouble = '', current = '', form = null, toldAt = 0

  const now = () => Date.now() / 1000 + ahead

  // Takes all there is, or what has changed; a page that has missed something asks for all of it.
  function learn(news, all) {
    if (all) s.entries = []
    else if (!news.put) {
      if (news.n !== s.n) tellKernel({ do: 'all' })
      return
    } else if (news.n !== s.n + 1) {
      tellKernel({ do: 'all' })
      return
    }
    const byName = new Map(s.entries.map(entry => [entry.name, entry]))
    for (const name of news.gone || []) byName.delete(name)
    for (const entry of news.put) byName.set(entry.name, entry)
    Object.assign(s, news.facts, { n: news.n, entries: [...byName.values()] })
    requestAnimationFrame(draw)
  }

  const say = text => {
    told.textContent = said.textContent = text
    toldAt = Date.now()
    told.hidden = !text
  }

  // ---- rows

  function line(entry) {
    const row = ownKeys(make('tr', 'row'))
    row.dataset.name = entry.name
    row.tabIndex = -1
    if (!entry.on) row.classList.add('nbq-off')
    const running = entry.runs.some(run => run.is === 'running')
    const mark = make('td', 'c-mark')
    mark.append(sign(entry.problem ? 'problem' : running ? 'running' : entry.on ? 'clock' : 'paused'))
    mark.title = entry.problem || (running ? 'running' : entry.on ? 'waits for its time' : 'paused')
    const who = make('td', 'c-task'), name = make('b', 'cut', entry.shown)
    name.title = entry.shown
    const below = make('div', 'below cut', entry.problem || `${entry.words} ${entry.zone}`)
    below.title = below.textContent
    who.append(name, below)
    const rule = make('td', 'c-rule')
    if (entry.problem) rule.append(make('span', 'problem', entry.problem))
    else {
      rule.append(document.createTextNode(entry.words))
      if (entry.zone) rule.append(make('span', 'muted', ` ${entry.zone}`))
      if (entry.kind === 'cron') rule.append(make('span', 'cron', entry.text))
    }
    rule.title = rule.textContent
    const due = make('td', 'c-next number', !entry.on ? 'paused' : entry.next === null ? '–' : at(entry.next, entry.seconds))
    const rest = make('td', 'c-count')
    if (entry.on && entry.next !== null) {
      const ticks = make('b')
      ticks.dataset.due = entry.next
      ticks.textContent = left(entry.next - now())
      rest.append(ticks)
    }
    const runs = make('td', 'c-strip')
    if (entry.runs.length) {
      const label = `Runs of ${entry.shown}: ${entry.told}`
      const shown = button('strip', '', label, () => toggle(entry.name))
      shown.append(strip(entry))
      shown.setAttribute('aria-expanded', open.has(entry.name))
      runs.append(shown)
    } else runs.append(make('span', 'muted', 'none yet'))
    const took = make('td', 'c-took number', entry.took === null ? '–' : clock(entry.took))
    const actions = make('td', 'acts'), group = make('span', 'group')
    group.append(
      button('tool wide', '', `Run ${entry.shown} now (R)`, () => act('run', entry.name), 'play'),
      entry.on
        ? button('tool', '', `Pause ${entry.shown} (P)`, () => act('pause', entry.name), 'paused')
        : button('plain', 'Resume', `Resume ${entry.shown} (P)`, () => act('resume', entry.name)),
      button('tool wide', '', `Edit ${entry.shown} (Enter)`, () => openForm(entry), 'edit'),
      button('tool wide', '', `Delete ${entry.shown} (Delete)`, () => drop(entry.name), 'bin'),
      button('tool narrow', '', `Run now, edit, delete and runs of ${entry.shown}`, () => toggle(entry.name), 'more'),
    )
    actions.append(group)
    row.append(mark, who, rule, due, rest, runs, took, actions)
    return row
  }

  function detail(entry) {
    const row = make('tr', 'detail'), cell = document.createElement('td'), list = make('ol', 'runs')
    row.dataset.of = entry.name
    cell.colSpan = COLUMNS.length
    const tools = make('div', 'group only-narrow')
    tools.append(button('button', 'Run now', `Run ${entry.shown} now`, () => act('run', entry.name)),
      button('button', 'Edit', `Edit ${entry.shown}`, () => openForm(entry)), button('button', 'Delete', `Delete ${entry.shown}`, () => drop(entry.name)))
    const what = [entry.task && `runs ${entry.task}`, entry.queue && `queue ${entry.queue}`,
      `if missed: ${(POLICIES.find(([policy]) => policy === entry.policy) || ['', entry.policy])[1].toLowerCase()}`,
      entry.origin && `from the settings of ${entry.origin}`, `fired ${count(entry.count)} time${entry.count === 1 ? '' : 's'}`]
    for (const run of entry.runs.slice(-10).reverse()) {
      const item = document.createElement('li')
      item.append(sign(run.is), make('span', '', at(run.due, true)))
      const word = make('b', '', run.is === 'missed' ? `${count(run.missed)} missed` : WORDS[run.is])
      item.append(word, make('span', 'muted', [run.took === null || run.took === undefined ? '' : clock(run.took), run.hand ? 'by hand' : ''].filter(Boolean).join(', ')))
      const id = make('code', 'id', run.id ? run.id.slice(0, 8) : '')
      if (run.id) id.title = `nbqueue.attach("${run.id}")`
      item.append(id)
      list.append(item)
    }
    cell.append(tools, make('div', 'muted what', what.filter(Boolean).join(' · ')), list)
    row.append(cell)
    return row
  }

  function tomb(name, shown) {
    const row = ownKeys(make('tr', 'row tomb')), cell = document.createElement('td')
    row.dataset.name = name
    row.tabIndex = -1
    cell.colSpan = COLUMNS.length - 1
    cell.append(make('b', 'cut', shown), document.createTextNode(' Deleted. '), button('plain', 'Undo', `Undo the deletion of ${shown}`, () => {
      gone.delete(name)
      known.delete(name)
      current = name
      tellKernel({ do: 'undelete', name })
    }))
    row.append(document.createElement('td'), cell)
    return row
  }

  function rowsOf(entry) {
    const isOpen = open.has(entry.name), key = JSON.stringify([entry, isOpen, entry.next !== null && new Date().toDateString()])
    const before = known.get(entry.name)
    if (before && before.key === key) return before.rows
    const rows = isOpen ? [line(entry), detail(entry)] : [line(entry)]
    known.set(entry.name, { key, rows })
    return rows
  }

  function toggle(name) {
    open.has(name) ? open.delete(name) : open.add(name)
    draw()
  }

  function act(what, name) {
    current = name
    tellKernel({ do: what, name })
  }

  function drop(name) {
    const entry = s.entries.find(one => one.name === name)
    gone.set(name, { until: Date.now() + UNDO_MS, gone: false, shown: entry ? entry.shown : name })
    current = name
    if (form && form.name === name) closeForm()
    tellKernel({ do: 'delete', name })
    setTimeout(draw, UNDO_MS + 100)
    draw()
    body.querySelector(`[data-name="${CSS.escape(name)}"] button`)?.focus()
  }

  function draw() {
    root.classList.toggle('nbq-dark', isDark())
    for (const [name, tombstone] of gone) if (tombstone.until < Date.now()) gone.delete(name)
    const names = [...new Set([...s.entries.map(entry => entry.name), ...gone.keys()])].sort()
    const byName = new Map(s.entries.map(entry => [entry.name, entry]))
    for (const name of known.keys()) if (!byName.has(name)) known.delete(name)
    const kept = focused()
    const rows = names.flatMap(name => {
      const tombstone = gone.get(name)
      if (tombstone && !(tombstone.gone && byName.has(name))) {
        if (!tombstone.row) tombstone.row = tomb(name, tombstone.shown)
        return [tombstone.row]
      }
      gone.delete(name)
      return rowsOf(byName.get(name))
    })
    if (rows.length !== body.children.length || rows.some((row, n) => body.children[n] !== row)) body.replaceChildren(...rows)
    restore(kept)
    roam()
    const alive = s.entries.filter(entry => !gone.has(entry.name)), off = alive.filter(entry => !entry.on).length
    sum.textContent = alive.length ? `${count(alive.length + s.more)} schedule${alive.length + s.more === 1 ? '' : 's'}${off ? `, ${off} paused` : ''}` : ''
    lead.replaceChildren()
    if (s.leader) {
      lead.append(sign('lead'), make('b', 'cut', s.leader.name), document.createTextNode(` leads${s.leader.standby ? `, ${s.leader.standby} stand${s.leader.standby === 1 ? 's' : ''} by` : ''}`))
      lead.title = `${s.leader.name} leads: only the leader sends. If it stops, another takes over within seconds.`
    }
    more.hidden = !s.more
    more.textContent = s.more ? `${count(s.more)} more; %beat list shows all.` : ''
    table.hidden = !rows.length
    empty.hidden = !!rows.length
    if (!rows.length && !empty.firstChild) {
      const text = make('p')
      text.append('Put ', make('code', '', '%%task name --every 10m'), ' on a cell, or add a task you already have.')
      empty.append(make('b', '', 'Nothing is scheduled'), text, button('button main', 'Add schedule', '', () => openForm(null), 'plus'))
    }
    add.hidden = !rows.length
    tell()
  }

  // Who has the focus, so that rows drawn anew give it back: a row, or what is labelled so in it.
  function focused() {
    const node = document.activeElement, row = body.contains(node) ? node.closest('tr') : null
    return row ? { name: row.dataset.name || row.dataset.of, label: node === row ? null : node.getAttribute('aria-label') } : null
  }

  function restore(kept) {
    if (!kept || body.contains(document.activeElement)) return
    const row = body.querySelector(`[data-name="${CSS.escape(kept.name)}"]`)
    const node = kept.label && root.querySelector(`[aria-label="${CSS.escape(kept.label)}"]`)
    // Pause has become Resume, or the other way round
    const near = kept.label && row?.querySelector('.nbq-group button:nth-child(2)')
    ;(node || near || row)?.focus({ preventScroll: true })
  }

  // One row can be reached by Tab, the others from it.
  function roam() {
    const rows = [...body.querySelectorAll('.nbq-row')]
    const chosen = rows.find(row => row.dataset.name === current) || rows[0]
    for (const row of rows) row.tabIndex = row === chosen ? 0 : -1
  }

  function tell() {
    const silent = (Date.now() - answered) / 1000 > SILENT_S
    const waits = s.entries.some(entry => entry.on && !gone.has(entry.name))
    const leaderless = s.leader || !waits ? '' : s.led_at
      ? `No beat leads since ${at(s.led_at, false)}. Firings are kept and run once when one returns.`
      : s.embedded ? 'Beat begins within seconds.' : 'No beat leads, so nothing fires.'
    const text = silent ? 'Not live: the kernel does not answer. The schedule goes on without it.' : trouble || leaderless
    if (note.dataset.text !== text) {
      note.dataset.text = note.textContent = text
      if (text && text === leaderless && !s.embedded) {
        const start = button('button', 'Start beat here', '', () => { start.disabled = true; start.textContent = 'Starting…'; tellKernel({ do: 'start' }) })
        note.append(' ', start)
      }
    }
    note.hidden = !text
    if (Date.now() - toldAt > TOLD_MS) told.hidden = true
    for (const ticks of root.querySelectorAll('[data-due]')) {
      const text = left(ticks.dataset.due - now())
      const shown = text === 'due' && !s.leader ? 'waits' : text
      if (ticks.textContent !== shown) ticks.textContent = shown
    }
  }

  // ---- the form

  function segments(label, choices, chosen, pick) {
    const box = make('span', 'segments')
    box.setAttribute('role', 'radiogroup')
    box.setAttribute('aria-label', label)
    for (const [value, text] of choices) {
      const one = button('', text, '', () => choose(value))
      one.setAttribute('role', 'radio')
      one.dataset.value = value
      box.append(one)
    }
    const choose = value => {
      for (const one of box.children) {
        const on = one.dataset.value === value
        one.setAttribute('aria-checked', on)
        one.tabIndex = on ? 0 : -1
      }
      box.value = value
      pick(value)
    }
    box.onkeydown = event => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key]
      if (!step) return
      event.preventDefault()
      event.stopPropagation()
      const all = [...box.children], next = all[(all.findIndex(one => one.dataset.value === box.value) + step + all.length) % all.length]
      choose(next.dataset.value)
      next.focus()
    }
    box.choose = choose
    return box
  }

  function field(label, input) {
    const box = make('label', 'labelled')
    box.append(make('span', 'meta', label), input)
    return box
  }

  function textInput(value, hint, offers) {
    const input = make('input', 'input')
    input.type = 'text'
    input.value = value
    input.placeholder = hint
    input.autocomplete = 'off'
    input.spellcheck = false
    if (offers) {
      const list = document.createElement('datalist')
      list.id = `nbq-${Math.random().toString(36).slice(2)}`
      input.setAttribute('list', list.id)
      input.offers = list
    }
    return input
  }

  const offer = (input, values) => input.offers.replaceChildren(...values.map(value => {
    const one = document.createElement('option')
    one.value = value
    return one
  }))

  function openForm(entry) {
    const editing = !!entry, f = form = { name: entry ? entry.name : '', n: 0, opener: entry ? null : document.activeElement }
    const isCron = editing && entry.kind === 'cron'
    f.texts = { every: isCron ? '10m' : editing ? entry.text : '10m', cron: isCron ? entry.text : '0 7 * * mon-fri' }
    f.run = textInput('', 'report, or report(3, region="north")', true)
    f.called = textInput('', 'as the task', false)
    f.queue = textInput('', '', true)
    f.text = textInput('', '', false)
    f.text.classList.add('nbq-mono')
    f.zone = textInput(isCron ? entry.zone : ownZone() || 'UTC', 'Europe/Oslo', true)
    f.label = make('span', 'meta', '')
    f.mistake = make('div', 'mistake')
    f.mistake.setAttribute('role', 'alert')
    f.words = make('div', 'words')
    f.words.setAttribute('aria-live', 'polite')
    f.caption = make('div', 'meta')
    f.list = make('ol', 'firings')
    f.send = button('button main', editing ? 'Save' : 'Add schedule', '', () => submit())
    const when = make('label', 'labelled grow')
    when.append(f.label, f.text)
    const zone = field('Time zone', f.zone)
    zone.classList.add('nbq-zone')
    f.kind = segments('When', [['every', 'Every'], ['cron', 'Crontab']], '', kind => {
      if (f.shown) f.texts[f.shown] = f.text.value
      f.shown = kind
      f.text.value = f.texts[kind]
      f.text.placeholder = kind === 'cron' ? '0 7 * * mon-fri' : '10m'
      f.label.textContent = kind === 'cron' ? 'Minute, hour, day, month, weekday' : 'Interval: 30s, 10m, 1h30m'
      zone.hidden = kind !== 'cron'
      look()
    })
    f.policy = segments('If firings were missed', POLICIES, '', () => {})
    const first = make('div', 'fields'), second = make('div', 'fields'), third = make('div', 'fields'), side = make('div', 'meaning')
    if (editing) first.append(make('div', 'editing', `${entry.shown} runs ${entry.task || 'what it was added with'}${entry.queue ? ` on queue ${entry.queue}` : ''}.`))
    else first.append(field('Run', f.run), field('Name', f.called), field('Queue', f.queue))
    const whenKind = make('div', 'labelled'), missed = make('div', 'labelled')
    whenKind.append(make('span', 'meta', 'When'), f.kind)
    missed.append(make('span', 'meta', 'If firings were missed'), f.policy)
    second.append(whenKind, when, zone)
    third.append(missed, make('span', 'space'), button('button', 'Discard', '', () => closeForm()), f.send)
    side.append(f.words, f.caption, f.list)
    const fields = make('div', 'asked')
    fields.append(first, second, f.mistake, third, f.run.offers, f.queue.offers, f.zone.offers)
    place.replaceChildren(fields, side)
    place.setAttribute('role', 'group')
    place.setAttribute('aria-label', editing ? `Edit ${entry.shown}` : 'Add a schedule')
    place.hidden = false
    f.text.oninput = f.zone.oninput = look
    f.run.oninput = f.called.oninput = () => fault('')
    for (const input of [f.run, f.called, f.queue, f.text, f.zone]) input.onkeydown = event => { if (event.key === 'Enter') submit() }
    f.policy.choose(editing ? entry.policy : 'coalesce')
    f.kind.choose(isCron ? 'cron' : 'every')
    ;(editing ? f.text : f.run).focus()
    tellKernel({ do: 'form' })
  }

  function look() {
    if (!form || !form.shown) return
    form.n += 1
    tellKernel({ do: 'preview', n: form.n, kind: form.shown, text: form.text.value, zone: form.zone.value })
  }

  function fault(text) {
    if (!form) return
    form.mistake.replaceChildren(...(text ? [sign('failed'), document.createTextNode(text)] : []))
  }

  function foresee(found) {
    if (!form || found.preview !== form.n) return
    const wrong = !!found.mistake
    form.text.setAttribute('aria-invalid', wrong)
    form.meant = !wrong
    form.list.classList.toggle('nbq-dim', wrong)
    form.words.classList.toggle('nbq-dim', wrong)
    fault(found.mistake || '')
    if (wrong) return
    form.words.textContent = found.words
    form.caption.textContent = `Next five firings, ${found.zone}`
    form.list.replaceChildren(...found.firings.map((one, n) => {
      const item = document.createElement('li'), rest = make('span', 'muted', n < 3 ? left(one.at - now()) : '')
      if (one.note) rest.append(n < 3 ? ' · ' : '', make('span', 'clocks', one.note))
      item.append(make('span', '', one.day), make('b', '', one.time), rest)
      return item
    }))
  }

  function submit() {
    if (!form || form.send.disabled) return
    if (form.meant === false) { form.text.focus(); return }
    const common = { kind: form.shown, text: form.text.value, zone: form.zone.value, policy: form.policy.value }
    form.send.disabled = true
    if (form.name) tellKernel({ do: 'change', name: form.name, ...common })
    else tellKernel({ do: 'add', run: form.run.value, name: form.called.value, queue: form.queue.value, ...common })
  }

  function closeForm() {
    const f = form
    form = null
    place.hidden = true
    place.replaceChildren()
    if (!f) return
    if (f.name) body.querySelector(`[data-name="${CSS.escape(f.name)}"]`)?.focus()
    else if (f.opener?.isConnected && !f.opener.hidden) f.opener.focus()
    else (add.hidden ? empty.querySelector('button') : add)?.focus()
  }

  // ---- what is said back

  function heard(message) {
    if (message.alive !== undefined) {
      answered = Date.now()
      trouble = message.trouble || ''
      if (message.alive) ahead = message.alive - Date.now() / 1000
      if (message.n !== undefined) learn(message, message.all)
      tell()
    } else if (message.preview !== undefined) foresee(message)
    else if (message.form && form) {
      offer(form.run, message.form.tasks)
      offer(form.queue, message.form.queues)
      offer(form.zone, message.form.zones)
      form.queue.placeholder = message.form.queue
    } else if (message.failed) {
      if (message.failed === 'start') note.dataset.text = '?'
      if (message.failed === 'delete') { gone.delete(message.name); known.delete(message.name); draw() }
      if (form && ['add', 'change'].includes(message.failed)) { form.send.disabled = false; fault(message.text) } else if (message.failed !== 'preview') say(message.text)
    } else if (message.done) {
      const { done, name } = message
      if (done === 'delete' && gone.has(name)) gone.get(name).gone = true
      if (form && ['add', 'change'].includes(done)) { current = name; form.name = name; closeForm() }
      say({ start: name, add: `${name} is added.`, change: `${name} is changed.`, run: `${name} was sent, beside its times, as ${(message.id || '').slice(0, 8)}.`,
        pause: `${name} is paused.`, resume: `${name} goes on.`, undelete: `${name} is back.`, delete: '' }[done] || '')
      if (done === 'delete') said.textContent = `${name} is deleted. Undo is in its row for 10 seconds.`
    }
  }

  root.onkeydown = event => {
    if (event.key === 'Escape') {
      if (form) { event.stopPropagation(); closeForm() } else if (open.size && body.contains(document.activeElement)) {
        event.stopPropagation()
        open.clear()
        draw()
      }
      return
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const row = event.target.classList?.contains('nbq-row') ? event.target : null
    if (!row) return
    const rows = [...body.querySelectorAll('.nbq-row')], step = { ArrowDown: 1, ArrowUp: -1 }[event.key]
    const entry = s.entries.find(one => one.name === row.dataset.name)
    const next = step ? rows[rows.indexOf(row) + step] : { Home: rows[0], End: rows[rows.length - 1] }[event.key]
    if (step || event.key === 'Home' || event.key === 'End') {
      event.preventDefault()
      if (next) { current = next.dataset.name; roam(); next.focus() }
      return
    }
    const does = { Enter: () => openForm(entry), ' ': () => toggle(entry.name), r: () => act('run', entry.name),
      p: () => act(entry.on ? 'pause' : 'resume', entry.name), n: () => openForm(null), Delete: () => drop(entry.name) }[event.key]
    if (!does || (!entry && event.key !== 'n') || gone.has(row.dataset.name)) return
    event.preventDefault()
    does()
  }
  body.onfocusin = event => {
    const row = event.target.closest('.nbq-row')
    if (row) { current = row.dataset.name; roam() }
  }

  model.on('msg:custom', heard)
  const seen = new IntersectionObserver(entries => { onScreen = entries[entries.length - 1].isIntersecting })
  seen.observe(root)
  const timer = setInterval(() => {
    if (!root.isConnected || !onScreen || document.hidden) return
    tellKernel({ do: 'look' })
    tell()
  }, ASK_MS)
  told.hidden = true
  learn(model.get('now'), true)
  draw()
  return () => { clearInterval(timer); seen.disconnect() }
}

export default { render }
