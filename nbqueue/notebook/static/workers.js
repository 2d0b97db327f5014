// The panel of workers. It asks once a second while it is on screen; everything from elsewhere goes in as text.

const SIGNS = {
  lives: ['succeeded', '<path d="M3 8.5l3.2 3.2L13 4.8" fill="none" stroke="currentColor" stroke-width="2"/>'],
  stops: ['cancelled', '<path d="M5.5 3.5v9M10.5 3.5v9" stroke="currentColor" stroke-width="2"/>'],
  lost: ['lost', '<path d="M8 1.8L14.2 8 8 14.2 1.8 8z" fill="none" stroke="currentColor" stroke-width="1.6"/><path d="M8 5v3.6m0 1.6v1" stroke="currentColor" stroke-width="1.6"/>'],
  runs: ['running', '<circle cx="8" cy="8" r="5.5" fill="none" stroke="currentColor" stroke-width="1.6" opacity=".35"/><path class="nbq-arc" d="M8 2.5a5.5 5.5 0 0 1 5.5 5.5" fill="none" stroke="currentColor" stroke-width="1.8"/><circle cx="8" cy="8" r="1.8" fill="currentColor"/>'],
}
const COLUMNS = [['Worker', ''], ['Children', ''], ['Queues', 'c-queues'], ['Done', 'c-done number'], ['Rate', 'c-rate number'],
  ['CPU', 'c-cpu'], ['Memory', 'c-memory number'], ['Heard', 'c-heard number'], ['', '']]
const ASK_MS = 1000
const SILENT_S = 8

function make(tag, names, text) {
  const node = document.createElement(tag)
  for (const name of (names || '').split(' ')) if (name) node.classList.add('nbq-' + name)
  if (text !== undefined) node.textContent = text
  // Else JupyterLab takes X for cutting the cell; it looks at what has the focus first, so this has to stand there.
  if (tag === 'button') node.setAttribute('data-lm-suppress-shortcuts', 'true')
  return node
}

function sign(name) {
  const [kind, path] = SIGNS[name]
  const box = make('span', 'icon')
  box.dataset.kind = kind
  box.setAttribute('aria-hidden', 'true')
  box.innerHTML = `<svg viewBox="0 0 16 16" width="14" height="14">${path}</svg>`
  return box
}

const count = n => Number(n).toLocaleString('en-US')
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`

function size(bytes) {
  if (!bytes) return '–'
  return bytes < 1e9 ? `${Math.round(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`
}

function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return '–'
  if (perSecond >= 10) return `${count(Math.round(perSecond))} /s`
  if (perSecond >= 1 || !perSecond) return `${perSecond.toFixed(perSecond ? 1 : 0)} /s`
  return `${(60 * perSecond).toFixed(1)} /m`
}

function clock(seconds) {
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`
  const s = Math.floor(seconds), two = n => String(n).padStart(2, '0')
  return s < 3600 ? `${Math.floor(s / 60)}:${two(s % 60)}` : `${Math.floor(s / 3600)}:${two(Math.floor(s % 3600 / 60))}:${two(s % 60)}`
}

function isDark() {
  const lab = document.querySelector('[data-jp-theme-light]')
  if (lab) return lab.getAttribute('data-jp-theme-light') === 'false'
  if (document.querySelector('.vscode-dark') || document.documentElement.getAttribute('theme') === 'dark') return true
  return matchMedia('(prefers-color-scheme: dark)').matches
}

function render({ model, el }) {
  // To a kernel that has ended nothing can be sent; that it is silent is said by the clock.
  const tellKernel = message => { try { model.send(message) } catch { /* it is gone */ } }
  const root = make('div', 'panel')
  root.classList.add('nbq')
  root.setAttribute('role', 'group')
  root.setAttribute('aria-label', 'Workers')
  const bar = make('div', 'top'), sum = make('span', 'sum'), note = make('div', 'note'), said = make('div', 'said')
  const less = make('button', '', '−'), more = make('button', '', '+'), shown = make('output', '', '0')
  const stepper = make('span', 'stepper'), stop = make('button', 'button', 'Stop')
  for (const [button, label] of [[less, 'One child less here'], [more, 'One child more here']]) {
    button.type = 'button'
    button.title = label
    button.setAttribute('aria-label', label)
  }
  stepper.append(less, shown, more)
  bar.append(make('span', 'title', 'Workers'), sum, make('span', 'space'), make('span', 'remark', 'Children here'), stepper, stop)
  const table = make('table', 'fleet'), body = document.createElement('tbody'), empty = make('div', 'empty')
  const head = document.createElement('tr')
  for (const [text, names] of COLUMNS) head.append(make('th', names, text))
  const top = document.createElement('thead')
  top.append(head)
  table.append(top, body)
  const logHead = make('div', 'loghead'), log = make('pre', 'log'), foot = make('div', 'foot')
  log.setAttribute('role', 'log')
  log.tabIndex = 0
  said.setAttribute('role', 'status')
  root.append(bar, note, table, empty, logHead, log, foot, said)
  el.append(root)
  logHead.hidden = log.hidden = true

  const open = new Set(), asked = new Map()
  let visible = true, wanted = null, settle = 0, logOf = '', answered = Date.now()

  const button = (text, act, title) => {
    const made = make('button', 'plain', text)
    made.type = 'button'
    if (title) made.title = title
    made.onclick = act
    return made
  }
  // What ends running tasks asks back, for four seconds.
  const twice = (key, text, question, act) => {
    const waits = Date.now() - (asked.get(key) || 0) < 4000
    return button(waits ? question : text, () => {
      if (waits) { asked.delete(key); act() } else { asked.set(key, Date.now()); setTimeout(draw, 4100) }
      draw()
    })
  }

  const step = by => {
    const s = model.get('state')
    wanted = Math.max(0, (wanted ?? s.here) + by)
    shown.textContent = wanted
    clearTimeout(settle)
    // Several clicks are one order.
    settle = setTimeout(() => { tellKernel({ do: 'scale', size: wanted }); settle = 0 }, 700)
  }
  less.onclick = () => step(-1)
  more.onclick = () => step(1)

  function blocks(w) {
    const box = make('span', 'blocks')
    const shifts = w.shifts.slice(0, 16)
    for (let i = 0; i < Math.min(16, Math.max(w.children, shifts.length)); i++) {
      const block = make('span', 'block'), shift = shifts[i]
      block.dataset.is = w.lost ? 'unknown' : !shift || !shift.ready ? (w.stopping ? 'stopped' : 'starting') : shift.id ? 'busy' : w.stopping ? 'stopped' : 'idle'
      box.append(block)
    }
    box.setAttribute('aria-hidden', 'true')
    return box
  }

  function row(w, now) {
    const line = make('tr', 'row'), who = make('td', 'who'), cells = [who]
    const fold = make('button', 'fold'), isOpen = open.has(w.full)
    fold.type = 'button'
    fold.setAttribute('aria-expanded', isOpen)
    fold.setAttribute('aria-label', `Children of ${w.name}`)
    fold.innerHTML = `<svg aria-hidden="true" viewBox="0 0 16 16" width="14" height="14"><path d="${isOpen ? 'M4 6l4 4 4-4' : 'M6 4l4 4-4 4'}" fill="none" stroke="currentColor" stroke-width="1.6"/></svg>`
    fold.onclick = () => { isOpen ? open.delete(w.full) : open.add(w.full); draw() }
    const remark = w.lost ? 'stopped answering' : w.stopping ? (w.busy ? `finishing ${w.busy}, then stops` : 'stops') : w.here ? 'this machine' : w.host
    who.append(fold, sign(w.lost ? 'lost' : w.stopping ? 'stops' : 'lives'), make('b', '', w.name), make('span', 'remark', remark))
    who.title = w.full
    const children = document.createElement('td')
    children.append(blocks(w), document.createTextNode(w.lost ? '–' : `${w.busy} of ${w.children}`))
    const queues = make('td', 'c-queues')
    for (const queue of w.queues.slice(0, 3)) queues.append(make('span', 'pill', queue))
    if (!w.queues.length) queues.append(make('span', 'pill', 'all queues'))
    if (w.queues.length > 3) queues.append(document.createTextNode(`+ ${w.queues.length - 3}`))
    const done = make('td', 'c-done number', count(w.done))
    if (w.failed) done.title = `${count(w.failed)} failed besides`
    const cpu = make('td', 'c-cpu')
    if (w.lost) cpu.textContent = '–'
    else {
      const gauge = make('span', 'gauge'), ink = document.createElement('i'), share = w.cpu / Math.max(1, w.children)
      ink.style.width = Math.min(100, 100 * share) + '%'
      gauge.append(ink)
      cpu.append(gauge, document.createTextNode(`${Math.round(100 * share)} %`))
    }
    const heard = make('td', w.lost ? 'c-heard number late' : 'c-heard number', clock(w.heard + now))
    const actions = document.createElement('td')
    if (!w.lost && w.stopping) {
      actions.append(twice('now' + w.full, 'Stop now', `End ${plural(w.busy, 'task')}?`, () => tellKernel({ do: 'stop', name: w.full, now: true })))
    } else if (!w.lost) {
      const wide = make('span', 'wide')
      wide.append(...besides(w))
      actions.append(wide)
      const end = () => tellKernel({ do: 'stop', name: w.full })
      actions.append(w.busy ? twice('stop' + w.full, 'Stop', `Stop after ${plural(w.busy, 'task')}?`, end) : button('Stop', end))
    }
    cells.push(children, queues, done, make('td', 'c-rate number', rate(w.rate)), cpu,
      make('td', 'c-memory number', size(w.memory)), heard, actions)
    line.append(...cells)
    return isOpen ? [line, ...w.shifts.map(shift => child(shift)), ...narrow(w)] : [line]
  }

  function besides(w) {
    const found = []
    if (w.here) found.push(button('Log', () => { logOf = logOf === w.full ? '' : w.full; log.textContent = ''; ask(); draw() }, 'The end of its log'))
    found.push(button('Restart', () => tellKernel({ do: 'restart', name: w.full }), 'Replace its children, each after its task'))
    return found
  }

  // Where there is no room beside a worker, what can be done with it stands below its children.
  function narrow(w) {
    if (w.lost || w.stopping) return []
    const line = make('tr', 'child narrow'), cell = document.createElement('td')
    cell.colSpan = COLUMNS.length
    cell.append(...besides(w))
    line.append(cell)
    return [line]
  }

  function child(shift) {
    const line = make('tr', 'child'), who = document.createElement('td'), task = document.createElement('td')
    who.textContent = `child ${shift.number}`
    if (shift.id) {
      const icon = sign('runs'), name = make('b', '', shift.name)
      name.title = `${shift.name} · ${shift.id}`
      const since = make('span', 'remark', clock(Date.now() / 1000 - shift.since))
      since.dataset.since = shift.since
      task.append(icon, document.createTextNode(' '), name, since)
    } else task.textContent = shift.ready ? 'idle' : 'starting'
    const end = document.createElement('td')
    if (shift.id) end.append(twice(shift.id, 'Cancel', 'Cancel it?', () => tellKernel({ do: 'cancel', id: shift.id })))
    line.append(who, task, make('td', 'c-queues', `pid ${shift.pid}`), make('td', 'c-done'), make('td', 'c-rate'),
      make('td', 'c-cpu', `${Math.round(100 * shift.cpu)} %`), make('td', 'c-memory number', size(shift.memory)), make('td', 'c-heard'), end)
    return line
  }

  function draw() {
    const s = model.get('state')
    if (!s.workers) return
    root.classList.toggle('nbq-dark', isDark())
    const live = s.workers.filter(w => !w.lost), waiting = Object.values(s.queued).reduce((a, b) => a + b, 0)
    const busy = live.reduce((a, w) => a + w.busy, 0), children = live.reduce((a, w) => a + w.children, 0)
    sum.textContent = live.length ? `${plural(live.length, 'worker')} · ${busy} of ${children} children busy${waiting ? ` · ${count(waiting)} queued` : ''}` : 'none'
    if (wanted !== null && !settle && s.here === wanted) wanted = null
    shown.textContent = wanted ?? s.here
    less.disabled = !(wanted ?? s.here)
    const silent = (Date.now() - answered) / 1000 > SILENT_S
    note.textContent = silent ? 'Not live: the kernel does not answer. Workers go on without it.' : s.trouble || s.note
    note.hidden = !note.textContent
    stop.hidden = !s.here
    table.hidden = !s.workers.length
    empty.hidden = !!s.workers.length
    const focus = root.contains(document.activeElement) ? document.activeElement.getAttribute('aria-label') : null
    body.replaceChildren(...s.workers.flatMap(w => row(w, 0)))
    if (focus) root.querySelector(`[aria-label="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true })
    if (!s.workers.length) {
      const start = make('button', 'button', `Start ${s.cores} here`)
      start.type = 'button'
      start.onclick = () => { start.disabled = true; start.textContent = 'Starting…'; tellKernel({ do: 'scale', size: s.cores }) }
      empty.replaceChildren(make('b', '', 'No workers yet'), make('p', '', waiting
        ? `${plural(waiting, 'task')} ${waiting === 1 ? 'is' : 'are'} waiting. ${waiting === 1 ? 'It starts' : 'They start'} as soon as a worker does.`
        : s.embedded ? 'One starts by itself when something is sent.' : 'Start some here, or on another machine.'), start)
    }
    logHead.hidden = log.hidden = !logOf
    logHead.textContent = logOf ? `The end of the log of ${logOf}` : ''
    foot.replaceChildren()
    if (!s.embedded) foot.append(document.createTextNode('To join from another machine: '), make('code', '', 'nbqueue worker --connect FILE'),
      document.createTextNode('with the file that nbqueue connect --export FILE writes here'))
    else foot.append(document.createTextNode('The embedded server serves this machine only.'))
    const text = `${plural(live.length, 'worker')}, ${busy} of ${children} children busy`
    if (said.dataset.text !== text) said.textContent = said.dataset.text = text
  }

  stop.onclick = () => {
    const waits = Date.now() - (asked.get('all') || 0) < 4000, s = model.get('state')
    if (!waits) {
      asked.set('all', Date.now())
      stop.textContent = `Stop ${plural(s.here, 'child').replace('childs', 'children')}?`
      setTimeout(() => { stop.textContent = 'Stop' }, 4000)
    } else { stop.textContent = 'Stop'; tellKernel({ do: 'scale', size: 0 }) }
  }

  function ask() {
    tellKernel({ do: 'look' })
    if (logOf) tellKernel({ do: 'log', name: logOf })
  }

  model.on('change:state', () => { answered = Date.now(); requestAnimationFrame(draw) })
  model.on('msg:custom', message => {
    if (message.name !== logOf) return
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 4
    log.textContent = message.log || 'Nothing is written here.'
    if (follows) log.scrollTop = log.scrollHeight
  })
  const seen = new IntersectionObserver(entries => { visible = entries[entries.length - 1].isIntersecting })
  seen.observe(root)
  const timer = setInterval(() => {
    if (!root.isConnected || !visible || document.hidden) return
    ask()
    if ((Date.now() - answered) / 1000 > SILENT_S) draw()
    for (const since of root.querySelectorAll('[data-since]')) since.textContent = clock(Date.now() / 1000 - since.dataset.since)
  }, ASK_MS)
  draw()
  return () => { clearInterval(timer); clearTimeout(settle); seen.disconnect() }
}

export default { render }
